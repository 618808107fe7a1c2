"""Which spec a start takes, what a child's end tells, and that only one host starts on a GPU."""

import asyncio
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mux_core.errors import SpecError
from mux_core.unitspec import to_json
from mux_runtime.brain.gates import CoreGate, FileGate
from mux_runtime.brain.hosts import threads
from mux_runtime.supervisor import protocol
from mux_runtime.supervisor.children import Child, Children
from mux_runtime.supervisor.main import UnitPaths, newest_spec
from unit_tree_builders import unit_spec


@pytest.mark.parametrize(
    ("kept", "generation"),
    [
        pytest.param(None, 3, id="nothing kept"),
        pytest.param({"generation": 7}, 7, id="a newer one was applied live"),
        pytest.param({"generation": 2}, 3, id="an older one was kept"),
        pytest.param({"generation": 7, "incarnation": 4}, 3, id="of another incarnation"),
        pytest.param({"generation": 7, "unit": "other"}, 3, id="of another unit"),
        pytest.param("{", 3, id="kept file is damaged"),
    ],
)
def test_a_start_takes_the_newest_spec(
    tmp_path: Path, kept: dict[str, object] | str | None, generation: int
) -> None:
    given = unit_spec([], generation=3)
    (tmp_path / "given.json").write_text(to_json(given))
    if isinstance(kept, str):
        (tmp_path / "kept.json").write_text(kept)
    elif kept is not None:
        (tmp_path / "kept.json").write_text(to_json(replace(given, **kept)))  # type: ignore[arg-type]
    assert newest_spec(tmp_path / "given.json", tmp_path / "kept.json").generation == generation


def test_a_missing_spec_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.json: No such file"):
        newest_spec(tmp_path / "spec.json", tmp_path / "kept.json")


def test_a_run_directory_is_private_and_clear_of_old_sockets(tmp_path: Path) -> None:
    paths = UnitPaths(run_dir=tmp_path / "run")
    paths.run_dir.mkdir()
    paths.pool_socket.touch()
    paths.spec.touch()
    paths.prepare()
    assert paths.run_dir.stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in paths.run_dir.iterdir()) == ["logs", "spec.json"]


def run_child(tmp_path: Path, code: str) -> tuple[Children, list[tuple[Child, int]]]:
    ended: list[tuple[Child, int]] = []
    children = Children(tmp_path, lambda child, code: ended.append((child, code)))
    children.spawn("x", [sys.executable, "-c", code])
    return children, ended


def reap(children: Children) -> None:
    while children.names:
        children.reap()
        time.sleep(0.01)


def test_a_child_that_ends_tells_its_code_and_last_words(tmp_path: Path) -> None:
    children, ended = run_child(tmp_path, "import sys; print('one'); sys.exit('two')")
    reap(children)
    ((child, code),) = ended
    assert (code, child.tail()) == (1, "one | two")


def test_a_killed_child_tells_the_signal(tmp_path: Path) -> None:
    children, ended = run_child(tmp_path, "import time; time.sleep(60)")
    assert children.signal("x", signal.SIGKILL)
    reap(children)
    assert [code for _, code in ended] == [-signal.SIGKILL]
    assert not children.signal("x", signal.SIGKILL)


def test_messages_survive_the_line() -> None:
    message = {"op": "start", "name": "a-decode-1", "argv": ["x\ny"], "env": {}}
    line = protocol.encode(message)
    assert line.count(b"\n") == 1
    assert protocol.decode(line) == message


@pytest.mark.parametrize("kind", ["cores", "file"])
async def test_a_gate_lets_as_many_in_as_it_says(tmp_path: Path, kind: str) -> None:
    gate = CoreGate(1) if kind == "cores" else FileGate(tmp_path / "gpu.lock")
    await gate.enter()
    second = asyncio.create_task(gate.enter())
    await asyncio.sleep(0.06)
    assert not second.done()
    gate.leave()
    await asyncio.wait_for(second, 5)
    gate.leave()


async def test_a_file_gate_holds_between_processes(tmp_path: Path) -> None:
    mine, other = FileGate(tmp_path / "gpu.lock"), FileGate(tmp_path / "gpu.lock")
    await mine.enter()
    waiting = asyncio.create_task(other.enter())
    await asyncio.sleep(0.06)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    mine.leave()
    await asyncio.wait_for(other.enter(), 5)
    other.leave()


@pytest.mark.parametrize(
    ("percent", "cores", "expected"), [(100, 2, 2), (60, 2, 1), (10, 2, 1), (30, 64, 19)]
)
def test_an_sm_share_on_cpu_is_a_share_of_the_cores(
    percent: int, cores: int, expected: int
) -> None:
    assert threads(percent, cores) == expected
