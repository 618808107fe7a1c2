"""The GPU probes run to their end without a GPU and keep what they promise to keep.

An MPS daemon and a driver are stand-ins; no figure here says anything about a GPU.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from mux_core.costmodel.profile_file import load_table
from sm_builders import install_fakes

PROBES = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
PATIENCE_S = 240.0
HEAD = {"row", "name", "date", "device", "counts", "gpu", "torch", "cuda", "python", "commit",
        "command", "seed", "shows", "complete", "seconds", "measurements"}  # fmt: skip


ABSENT = ("msgspec", "kopf", "kubernetes", "prometheus_client", "pynvml", "mux_native")
"""Packages of ours that a rented machine with torch does not have."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    absent = tmp_path_factory.mktemp("absent")
    for name in ABSENT:
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError(name={name!r})\n")
    return {**os.environ, **install_fakes(tmp_path_factory.mktemp("fakes")),
            "PYTHONPATH": str(absent)}  # fmt: skip


class Probe:
    """Runs scripts into one folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def start(self, script: str, *options: str) -> "subprocess.Popen[str]":
        line = [sys.executable, str(PROBES / script), "--device", "cpu", "--out", str(self.folder)]
        return subprocess.Popen([*line, *options], env=dict(self.environment), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def run(self, script: str, *options: str) -> dict[str, Any]:
        """The file that a script made."""
        with self.start(script, *options) as process:
            text, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, text
        return self.document()

    def document(self) -> dict[str, Any]:
        (file,) = self.folder.glob("*.json")
        made: dict[str, Any] = json.loads(file.read_text())
        return made


@pytest.fixture
def probe(tmp_path: Path, environment: Mapping[str, str]) -> Iterator[Probe]:
    yield Probe(tmp_path, environment)
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert not left


def found(document: Mapping[str, Any], what: str, key: str = "value") -> list[Any]:
    return [m[key] for m in document["measurements"] if m["what"] == what and key in m]


def failures(document: Mapping[str, Any]) -> list[str]:
    return [f"{m['what']}: {m['failed']}" for m in document["measurements"] if "failed" in m]


def test_every_file_says_on_what_and_how_it_was_made(probe: Probe) -> None:
    document = probe.run("row1_census.py", "--percents", "50", "30", "--seed", "7")
    assert document.keys() >= HEAD
    assert (document["device"], document["counts"], document["complete"]) == ("cpu", False, True)
    assert (document["seed"], document["gpu"]) == (7, {"name": "cpu"})
    assert "row1_census.py --device cpu" in document["command"]
    assert document["shows"]


def test_row_0_lists_the_client_of_our_own_daemon(probe: Probe) -> None:
    document = probe.run("row0_facts.py")
    clients = [m for m in document["measurements"] if m["what"] == "clients"]
    assert clients[0]["value"] == [clients[0]["parameters"]["ours"]]
    assert len(found(document, "quit", "values")) >= 1
    assert document["shows"].startswith("MPS works here as this user")


def test_row_1_counts_inside_and_outside_of_the_daemon(probe: Probe) -> None:
    document = probe.run("row1_census.py", "--percents", "50", "30")
    assert found(document, "SMs by cuDeviceGetAttribute") == [132, 66, 38, 132]
    assert document["shows"].startswith("of 132 SMs, 2 of 2 shares")
    assert failures(document) == []


def test_row_2_measures_the_whole_again_at_the_end(probe: Probe) -> None:
    document = probe.run("row2_roofline.py", "--percents", "50", "--reps", "3")
    copies = [m for m in document["measurements"] if m["what"] == "copy"]
    assert [(m["parameters"]["percent"], m["parameters"]["again"], len(m["values"]))
            for m in copies] == [(50, False, 3), (100, True, 3)]  # fmt: skip
    assert failures(document) == []


def test_row_3_times_the_real_engine_at_each_share(probe: Probe) -> None:
    document = probe.run("row3_engine.py", "--percents", "30", "--reps", "3")
    decodes = [m for m in document["measurements"] if m["what"] == "decode"]
    assert {(m["parameters"]["percent"], m["parameters"]["batch"]) for m in decodes} == {
        (30, 1), (30, 2)}  # fmt: skip
    assert all(m["median"] > 0 and len(m["values"]) == 3 for m in decodes)
    assert failures(document) == []


def test_a_result_of_row_3_becomes_a_profile_that_the_planner_reads(tmp_path: Path) -> None:
    def measured(what: str, median: float, **parameters: object) -> dict[str, object]:
        return {"what": what, "median": median, "parameters": {"model": "4b", **parameters}}

    document = {"counts": True, "device": "cuda", "gpu": {"name": "Some GPU"}, "measurements": [
        measured("prefill", 20.0, percent=100, tokens=512),
        measured("decode", 9.0, percent=100, batch=1, context=512),
        measured("decode", 12.0, percent=50, batch=4, context=512),
        {"what": "decode", "failed": "left out", "parameters": {"percent": 10}},
    ]}  # fmt: skip
    result = tmp_path / "row3.json"
    convert = [sys.executable, str(PROBES / "profile_table.py"), str(result), "--out", tmp_path]
    result.write_text(json.dumps(document))
    subprocess.run(convert, check=True)
    text = (tmp_path / "4b.profile.json").read_text()
    table = load_table(text, subject="4b")
    rows = {(r.percent, r.batch, r.prefill_s, r.decode_s) for found in table.cells.values()
            for r in found}  # fmt: skip
    assert rows == {(100, 1, 0.02, 0.009), (50, 4, None, 0.012)}
    assert table.gpu == "some-gpu"
    result.write_text(json.dumps({**document, "counts": False, "device": "cpu"}))
    refused = subprocess.run(convert, capture_output=True, text=True, check=False)
    assert (refused.returncode, "made on cpu" in refused.stderr) == (2, True)


def test_row_4_runs_pairs_beside_each_other(probe: Probe) -> None:
    document = probe.run("row4_pairs.py", "--loop-seconds", "0.1", "--splits", "70/30")
    assert len(found(document, "slowdown")) == 6
    assert {tuple(m["parameters"]["split"]) for m in document["measurements"]
            if m["what"] == "slowdown"} == {(70, 30)}  # fmt: skip
    assert failures(document) == []


def test_row_5_memory_outlives_its_owner_and_read_only_is_kept(probe: Probe) -> None:
    document = probe.run("row5_vmm.py", "--faults")
    assert failures(document) == []
    for what in ("the second importer reads what the first wrote",
                 "copy into a read-only mapping is refused", "mapped memory outlives its owner",
                 "a descriptor kept the memory after the owner's death"):  # fmt: skip
        assert found(document, what) == [True, True], what
    assert found(document, "a kernel's write into a read-only mapping is refused") == [True]


def test_row_6_adds_up_step_by_step(probe: Probe) -> None:
    document = probe.run("row6_memory.py", "--reps", "1")
    assert failures(document) == []
    assert len(found(document, "engine host beside weights and KV", "median")) == 2


def test_row_7_counts_the_conformance_suite(probe: Probe) -> None:
    document = probe.run("row7_conformance.py", "--select", "unknown_and_twice")
    assert found(document, "counts") == [{"passed": 1, "failed": 0, "skipped": 0}]


def test_a_script_out_of_time_says_what_it_left_out(probe: Probe) -> None:
    document = probe.run("row3_engine.py", "--seconds", "0")
    assert document["complete"]
    assert any("left out" in failure for failure in failures(document))


def test_a_script_that_is_killed_leaves_its_results_and_nothing_else(probe: Probe) -> None:
    with probe.start("row3_engine.py") as process:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and process.poll() is None:
            if list(probe.folder.glob("*.json")) and found(probe.document(), "decode", "values"):
                break
            time.sleep(0.1)
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    document = probe.document()
    assert (document["complete"], bool(found(document, "decode", "values"))) == (False, True)
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert [p for p in alive if "mps-server" not in " ".join(p.cmdline())] == []
    for orphan in alive:
        orphan.kill()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", "1", "5"], ["row 1 row1_census.py: done", "row 5 row5_vmm.py: done"]),
        (["--rows", "5", "--seconds", "1"], ["row 5 row5_vmm.py: left out: 1 s are left"]),
    ],
)
def test_all_rows_run_in_order_within_a_budget(
    probe: Probe, options: Sequence[str], words: Sequence[str]
) -> None:
    with probe.start("run_all.py", *options) as process:
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, text
    assert text.splitlines()[-len(words) :] == [w for w in text.splitlines() if w.startswith("row")]
    for word in words:
        assert word in text
