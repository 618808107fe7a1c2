"""A supervisor with an MPS daemon of its own: start, quit, and every way to die.

The daemon is a stand-in that speaks the control protocol; the brain is a process that waits.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mux_core.unitspec import Device, to_json
from mux_runtime.sm.mps import MpsControl, MpsUnavailable
from mux_runtime.supervisor.main import UnitPaths
from sm_builders import install_fakes
from unit_tree_builders import unit_spec

UNIT = """
import asyncio, sys
from pathlib import Path
from mux_core.errors import PeerError
from mux_runtime.sm.mps import MpsControl
from mux_runtime.supervisor.main import Supervisor, UnitPaths
paths = UnitPaths(run_dir=Path(sys.argv[1]))
paths.prepare()
brain = [sys.executable, "-c", "import time; time.sleep(600)"]
unit = Supervisor(paths=paths, brain_argv=brain, arena_bytes=1 << 20, drain_s=1.0,
                  mps=MpsControl(paths=paths.mps))
try:
    sys.exit(asyncio.run(unit.run()))
except PeerError as error:
    sys.exit(f"unit: {error}")
"""
PATIENCE_S = 60.0


class Unit:
    """A supervisor over the stand-in daemon."""

    def __init__(self, folder: Path) -> None:
        self.paths = UnitPaths(run_dir=folder / "run")
        self.control = MpsControl(paths=self.paths.mps)
        self.log = folder / "log"
        self.begun = time.time()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-c", UNIT, str(self.paths.run_dir)],
                                            stdout=log, stderr=log)  # fmt: skip

    def until_up(self) -> list[psutil.Process]:
        """Until daemon, pool owner and brain run; all processes of the tree."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._pool_listens():
                return psutil.Process(self.process.pid).children(recursive=True)
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def _pool_listens(self) -> bool:
        """On a socket of this start: a killed unit leaves its own behind."""
        socket = self.paths.pool_socket
        return socket.exists() and socket.stat().st_mtime >= self.begun

    def daemon(self) -> int:
        return int((self.paths.mps.pipe / "nvidia-cuda-mps-control.pid").read_text())

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Unit]]:
    for name, value in install_fakes(tmp_path / "fakes").items():
        monkeypatch.setenv(name, value)
    started: list[Unit] = []

    def begin() -> Unit:
        started.append(Unit(tmp_path))
        return started[-1]

    yield begin
    for unit in started:
        unit.process.kill()
        unit.process.wait()
        unit.paths.mps.prepare()


def all_gone(tree: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(tree, timeout=10)
    return not alive


def test_the_daemon_answers_before_anything_else_runs_and_quits_last(
    start: Callable[[], Unit],
) -> None:
    unit = start()
    tree = unit.until_up()
    assert unit.control.clients() == frozenset()
    assert unit.end(signal.SIGTERM) == 0, unit.log.read_text()
    assert all_gone(tree)
    assert not (unit.paths.mps.pipe / "control").exists(), "it was killed instead of told to quit"


def test_the_unit_ends_with_its_daemon(start: Callable[[], Unit]) -> None:
    unit = start()
    tree = unit.until_up()
    os.kill(unit.daemon(), signal.SIGKILL)
    assert unit.process.wait(PATIENCE_S) == 1
    assert all_gone(tree)
    assert "MPS daemon ended" in unit.log.read_text()


def test_after_kill_9_of_the_supervisor_the_next_start_is_clean(
    start: Callable[[], Unit],
) -> None:
    unit = start()
    tree = unit.until_up()
    unit.end(signal.SIGKILL)
    fresh = start()
    fresh.until_up()
    assert all_gone(tree), "the killed unit's MPS server still runs"
    assert fresh.control.clients() == frozenset()
    assert fresh.end(signal.SIGTERM) == 0


def test_a_daemon_that_does_not_start_ends_the_unit_with_its_words(
    start: Callable[[], Unit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MPS", "refusing")
    unit = start()
    assert unit.process.wait(PATIENCE_S) == 1
    assert "the daemon ended at once: Failed to start : refusing" in unit.log.read_text()
    with pytest.raises(MpsUnavailable):
        unit.control.clients()


def test_a_gpu_unit_on_a_machine_without_one_says_so(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(to_json(unit_spec([], device=Device.CUDA)))
    asked = subprocess.run(
        [sys.executable, "-m", "mux_runtime", "unit", "--spec", spec, "--run-dir", tmp_path / "r"],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert asked.returncode == 2
    assert "unit: NoGPU: unit u: device CUDA, but NVML" in asked.stderr
    assert "Traceback" not in asked.stderr
