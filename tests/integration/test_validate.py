"""`muxserve validate` on real units: three answers to one load, and what it refuses."""

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mux_cli.demo_files import write_manifests
from mux_cli.main import main
from mux_cli.tiny_models import TinyModel, write
from mux_core.costmodel.profile_file import dump_profiles
from mux_core.costmodel.profile_set import MadeOn
from mux_operator.release import release
from mux_runtime.engines.checkpoint_files import read_model_config
from mux_runtime.profiling.devices import cores, cpu_name
from profile_builders import MADE, model_profile, profile_set

TINY = TinyModel(family="qwen3", layers=2, hidden=64, head_dim=32, intermediate=128, vocab=600,
                 seed=5)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write(TINY, tmp_path_factory.mktemp("models") / "tiny")


def here() -> MadeOn:
    return replace(MADE, device=cpu_name(cores()), cores=cores(), release=release())


def profile_file(folder: Path, tiny: Path, **changes: object) -> Path:
    model = model_profile("tiny", read_model_config(tiny).geometry)
    path = folder / "profile.json"
    path.write_text(dump_profiles(profile_set(model, **{"made": here(), **changes})))
    return path


@pytest.mark.engine
def test_one_load_is_predicted_simulated_and_observed(tiny, tmp_path, capsys):
    manifests = write_manifests(tmp_path / "m", {"tiny": tiny}, memory="128Mi")
    profile = profile_file(tmp_path, tiny, made=replace(here(), yardstick_s=1e-3))
    code = main(["validate", "-f", str(manifests), "--profiles", str(profile), "--seconds", "4",
                 "--warmup", "1", "--rates", "tiny=6", "-o", "json"])  # fmt: skip
    assert code == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["slower"] > 0
    found = json.loads(line)["models"]["tiny"]
    assert found["costs"] == "measured"
    observed, simulated, predicted = found["observed"], found["simulated"], found["predicted"]
    assert observed["requests"] == simulated["requests"] > 5
    assert observed["unfinished"] == simulated["unfinished"] == 0
    assert observed["offered"] == simulated["offered"]
    assert predicted["offered"] == 6
    for said in (observed, simulated):
        for latency in ("ttft", "tpot"):
            assert 0 < said[latency]["p50"] <= said[latency]["p99"]
        assert 0 < said["kv"] < 1
    assert 0 < predicted["tpot"]["mean"] < 1
    assert 0 < predicted["ttft"]["mean"] <= predicted["ttft"]["p99"]


@pytest.mark.engine
def test_a_killed_validate_leaves_no_process(tiny, tmp_path):
    manifests = write_manifests(tmp_path / "m", {"tiny": tiny}, memory="128Mi")
    validate = subprocess.Popen([sys.executable, "-m", "mux_cli.main", "validate",
                                 "-f", str(manifests)], stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        engines = wait_for_engines(psutil.Process(validate.pid))
    finally:
        validate.kill()
        validate.wait()
    _, alive = psutil.wait_procs(engines, timeout=20)
    assert not alive


def wait_for_engines(parent: psutil.Process) -> list[psutil.Process]:
    """All that a process has started, once there is an engine host among them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        started = parent.children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("mux_runtime.engines.torch" in child.cmdline() for child in started):
                return started
        time.sleep(0.05)
    raise AssertionError("no engine host within 60 s")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rates", "other=2"], "write MODEL=RATE with a model of the manifests: tiny"),
        (["--rates", "tiny=fast"], "'fast' is no number"),
        (["--rates", "tiny=0"], "above 0"),
        (["--seconds", "0"], "--seconds 0"),
        (["--load", "3"], "--load 3: above 0, at most 2"),
        (["--seeds", "0"], "--seeds 0: at least 1"),
        (["--profiles", "{tmp}/none.json"], "cannot be read"),
    ],
)
def test_wrong_words_are_refused_before_anything_starts(tiny, tmp_path, capsys, arguments, words):
    manifests = write_manifests(tmp_path / "m", {"tiny": tiny})
    line = [word.format(tmp=tmp_path) for word in arguments]
    assert main(["validate", "-f", str(manifests), *line]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (replace(here(), device="another one"), "measured on another one, this machine is"),
        (replace(here(), release="0.0.1"), "measured with release 0.0.1"),
        (replace(here(), path="vllm/cuda"), "measured on engine path vllm/cuda"),
    ],
    ids=["device", "release", "path"],
)  # fmt: skip
def test_a_profile_of_something_else_is_refused_with_the_fix(tiny, tmp_path, capsys, made, words):
    manifests = write_manifests(tmp_path / "m", {"tiny": tiny})
    profile = profile_file(tmp_path, tiny, made=made)
    assert main(["validate", "-f", str(manifests), "--profiles", str(profile)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "measure" in said


def test_a_plan_says_what_its_costs_stand_on(tiny, tmp_path, capsys):
    manifests = write_manifests(tmp_path / "m", {"tiny": tiny})
    profile = profile_file(tmp_path, tiny)
    for words, costs in ((["--profiles", str(profile)], "measured"), ([], "data sheet")):
        assert main(["plan", "-f", str(manifests), "-o", "json", "--no-bound", *words]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["models"]["tiny"]["costs"] == costs
