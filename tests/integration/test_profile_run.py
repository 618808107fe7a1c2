"""Profiles of real engine hosts: measured through their socket, kept through a kill."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mux_cli.main import main
from mux_cli.tiny_models import TinyModel, write
from mux_core.costmodel.profile_file import load_profiles
from mux_core.engine import Phase
from mux_core.units import Bytes
from mux_runtime.profiling.assemble import assemble
from mux_runtime.profiling.bench import Device, open_bench
from mux_runtime.profiling.journal import Journal
from mux_runtime.profiling.points import Grid, Kind, Subject, make_grid
from mux_runtime.profiling.probe_unit import ToServe
from mux_runtime.profiling.random_weights import write_checkpoint
from mux_runtime.profiling.run import Job, run, values
from mux_runtime.profiling.steps import decode_s, prefill_s
from mux_runtime.sm.shares import ShareNotVerified
from profile_builders import MADE, shape
from sm_builders import FakePartition

TINY = TinyModel(family="qwen2", layers=2, hidden=64, head_dim=32, intermediate=128, vocab=512,
                 max_model_len=96, seed=7)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write(TINY, tmp_path_factory.mktemp("model") / "tiny")


def job(tiny: Path, folder: Path, grid: Grid) -> Job:
    return Job(models={"tiny": tiny}, device=Device(name="cpu", cores=2), grid=grid,
               folder=folder, unit_bytes=16384, arena=Bytes(64 << 20),
               to_serve=ToServe(models={"tiny": tiny}, memory=256 << 20))  # fmt: skip


async def test_hosts_are_measured_point_by_point_and_each_point_once(tiny, tmp_path):
    subject = Subject(name="tiny", max_model_len=96, kv_tokens=1000)
    whole = make_grid([subject], (50,), quick=True, unit=False, most_batch=4)
    grid = Grid(points=whole.points, passes=1, most_passes=1, once=frozenset(), left_out=())
    journal = Journal.open(tmp_path / "p.journal", {})
    told = []
    (tmp_path / "run").mkdir()
    await run(job(tiny, tmp_path / "run", grid), journal, lambda what, part, _: told.append(what))
    assert told == [point.key for point in grid.points]
    journal.close()

    again = Journal.open(tmp_path / "p.journal", {})
    (tmp_path / "again").mkdir()
    await run(job(tiny, tmp_path / "again", grid), again, lambda what, *_: told.append(what))
    assert len(told) == len(grid.points)

    found = values(again, grid.points)
    again.close()
    profile = assemble(found, grid.points, gpu="cpu", made=MADE, left_out=(),
                       geometries={"tiny": shape()})  # fmt: skip
    (model,) = profile.models
    assert {row.batch for row in model.table.rows(1, 50) if row.decode_s} == {1, 2, 4}
    assert all(0 < (row.decode_s or row.prefill_s or 0) < 10 for row in model.table.rows(1, 50))
    assert model.grant_s > 0
    assert model.handoff_s > 0
    assert model.host_bytes > 50 << 20
    assert len(profile.pairs) == len([p for p in grid.points if p.kind is Kind.PAIR])


def profiling(output: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mux_cli.main", "profile", "-o", str(output), "--quick",
               "--memory", "0.1", *arguments]  # fmt: skip
    # A shell has what it starts in the background ignore Ctrl-C, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for_lines(path: Path, count: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        if lines >= count:
            return lines
        time.sleep(0.02)
    raise AssertionError(f"{path}: fewer than {count} lines")


def test_a_killed_run_leaves_no_process_and_goes_on_where_it_was(tiny, tmp_path):
    output = tmp_path / "p.json"
    journal = tmp_path / "p.json.journal"
    first = profiling(output, str(tiny))
    try:
        kept = wait_for_lines(journal, 4)
        children = psutil.Process(first.pid).children(recursive=True)
    finally:
        first.kill()
        first.communicate()
    assert children
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not output.exists()

    second = profiling(output, str(tiny))
    try:
        wait_for_lines(journal, kept + 3)
    finally:
        second.send_signal(signal.SIGINT)
        _, said = second.communicate(timeout=60)
    assert "measurements are there" in said
    assert "give the same command again" in said
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    measured = [line["key"] for line in lines if not line["key"].startswith("run/")]
    assert len(set(measured)) == len(measured)


def test_passes_are_added_one_run_at_a_time_to_the_profile_that_is_there(tiny, tmp_path, capsys):
    output = tmp_path / "p.json"
    journal = tmp_path / "p.json.journal"
    once = ["profile", str(tiny), "-o", str(output), "--quick", "--memory", "0.1",
            "--max-batch", "1", "--passes", "1"]  # fmt: skip

    def passes(key: str) -> dict[int, dict[str, float]]:
        lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
        return {line["pass"]: line["value"] for line in lines if line["key"] == key}

    def decode_s() -> float:
        (model,) = load_profiles(output.read_text(), subject="p.json").models
        return next(row.decode_s for row in model.table.rows(1, 100) if row.decode_s)

    assert main(once) == 0
    assert "left out: further passes (--passes; the same command adds them)" in (
        capsys.readouterr().out
    )
    assert list(passes("decode/tiny/100/1/56")) == [0]

    assert main(once) == 0
    taken = passes("decode/tiny/100/1/56")
    assert list(taken) == [0, 1]
    assert list(passes("unit//50/1/1")) == [0], "once in a quick profile"
    assert decode_s() == pytest.approx(min(value["s"] for value in taken.values()))

    output.write_text("mine")
    assert main(once) == 2
    assert "exists already" in capsys.readouterr().err
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model: give folders"),
        (["{tiny}", "{tiny}"], "two folders have this name"),
        (["{tmp}/nowhere"], "config.json: not found"),
        (["{tiny}", "--max-batch", "4000", "--memory", "0.01"],
         "decode batch 4000 of 64 tokens needs .* of KV memory, --memory gives"),
        (["{tiny}", "--memory", "9999"], "this machine has .* free; lower it"),
        (["{tiny}", "--memory", "nan"], "--memory nan: GiB above 0"),
        (["{tiny}", "--max-batch", "0"], "--max-batch 0: at least 1"),
        (["{tiny}", "--passes", "0"], "--passes 0: at least 1"),
        (["{tiny}", "--device", "cuda"], "--device cuda: "),
    ],
    ids=["none", "twice", "missing", "batch", "memory", "nan", "no batch", "no passes", "no-gpu"],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    tiny, tmp_path, capsys, arguments, words
):
    line = [word.format(tiny=tiny, tmp=tmp_path) for word in arguments]
    assert main(["profile", *line, "-o", str(tmp_path / "p.json")]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert not list(tmp_path.iterdir())


def test_an_unknown_architecture_is_named_with_those_that_run(tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text('{"architectures": ["MambaForCausalLM"]}')
    assert main(["profile", "--config", str(config), "-o", str(tmp_path / "p.json")]) == 2
    said = capsys.readouterr().err
    assert "MambaForCausalLM" in said
    assert "LlamaForCausalLM" in said


def test_a_profile_that_is_there_is_not_overwritten(tiny, tmp_path, capsys):
    output = tmp_path / "p.json"
    output.write_text("mine")
    assert main(["profile", str(tiny), "-o", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert output.read_text() == "mine"


async def test_random_weights_of_a_shape_are_served(tiny, tmp_path):
    made = write_checkpoint(tiny / "config.json", tmp_path / "made")
    device = Device(name="cpu", cores=2)
    async with open_bench(tmp_path, device, unit_bytes=16384, arena=Bytes(16 << 20)) as bench:
        decode = await bench.start("made", made, Phase.DECODE, 50)
        assert await decode_s(decode, batch=2, context=40) > 0
        prefill = await bench.start("made", made, Phase.PREFILL, 50)
        assert await prefill_s(prefill, batch=1, tokens=95) > 0
        await bench.end(decode)
        await bench.end(prefill)
        assert bench.allocator.owned_units == 0


async def test_a_share_that_is_not_in_force_is_never_measured(tiny, tmp_path):
    device = Device(name="cpu", cores=2)
    async with open_bench(tmp_path, device, unit_bytes=16384, arena=Bytes(16 << 20),
                          partition=FakePartition("wrong share")) as bench:  # fmt: skip
        assert (tmp_path / "hosts.sock").is_socket(), "no host can come too early"
        with pytest.raises(ShareNotVerified, match="50"):
            await bench.start("tiny", tiny, Phase.DECODE, 50)
