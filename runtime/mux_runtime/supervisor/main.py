"""The supervisor's life: pool owner, then the brain, then whatever the brain asks for.

On a GPU an MPS daemon of the unit's own comes before all of them and is told to quit last.

* The brain ends: its hosts are killed, the pool owner stays with the sealed weights, the brain
  starts again after a pause. Exit code 2 of the brain means that no start can help: all ends.
* The pool owner ends: its memory is gone, all ends with code 1 and starts anew from outside.
* The MPS daemon ends: a host started now would have the whole GPU, so all ends as well.
* SIGTERM or SIGINT: the brain drains and ends, then the rest. A second one ends all at once.

kill -9 of this process ends every child (PR_SET_PDEATHSIG); the sockets that stay in the run
directory are replaced by the next start.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mux_core.errors import PeerError, SpecError
from mux_core.unitspec import Device, UnitSpec, from_json
from mux_runtime.nvml import NvmlUnavailable, open_nvml
from mux_runtime.sm.mps import MpsControl, MpsPaths, MpsUnavailable, end_leftovers
from mux_runtime.sm.preflight import GpuUnfit, Unfit, check_mps, choose_gpu
from mux_runtime.supervisor import protocol
from mux_runtime.supervisor.children import Child, Children

_log = logging.getLogger("supervisor")

BRAIN: Final = "brain"
POOL: Final = "pool"
MPS: Final = "mps"
UNUSABLE: Final = 2
"""Exit code of a brain (and of this process) for input that must change first."""
_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0)
_STABLE_S: Final = 30.0
_GRACE_S: Final = 10.0
_QUIT_S: Final = 5.0
"""For the MPS daemon to end its servers once all clients are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPaths:
    """What lies in a run directory."""

    run_dir: Path

    @property
    def spec(self) -> Path:
        return self.run_dir / "spec.json"

    @property
    def supervisor_socket(self) -> Path:
        return self.run_dir / "supervisor.sock"

    @property
    def pool_socket(self) -> Path:
        return self.run_dir / "pool.sock"

    @property
    def hosts_socket(self) -> Path:
        return self.run_dir / "hosts.sock"

    @property
    def logs(self) -> Path:
        return self.run_dir / "logs"

    @property
    def mps(self) -> MpsPaths:
        return MpsPaths(base=self.run_dir / "mps", logs=self.logs / "mps")

    def prepare(self) -> None:
        """Makes the directory ours alone and removes what a killed unit left."""
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.run_dir.chmod(0o700)
        self.logs.mkdir(mode=0o700, exist_ok=True)
        for stale in self.run_dir.glob("*.sock"):
            stale.unlink()


def newest_spec(given: Path, kept: Path) -> UnitSpec:
    """The given spec, or the last applied one of the same incarnation if that is newer.

    Raises SpecError; a kept file that cannot be read is passed over.
    """
    try:
        spec = from_json(given.read_text())
    except OSError as error:
        raise SpecError(f"unit spec {given}: {error.strerror}; write it first") from error
    with contextlib.suppress(OSError, SpecError):
        last = from_json(kept.read_text())
        same = (last.unit, last.incarnation) == (spec.unit, spec.incarnation)
        if same and last.generation > spec.generation:
            return last
    return spec


@dataclass(slots=True)
class Supervisor:
    """One unit's processes. Lives in one event loop."""

    paths: UnitPaths
    brain_argv: list[str]
    arena_bytes: int
    drain_s: float
    mps: MpsControl | None = None
    children: Children = field(init=False)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    code: int = 0
    stopping: bool = False
    failures: int = 0
    brain_started: float = 0.0
    brain: asyncio.StreamWriter | None = None

    def __post_init__(self) -> None:
        self.children = Children(self.paths.logs, self._ended)

    async def run(self) -> int:
        """Until everything has ended; the exit code. Raises MpsUnavailable before anything runs."""
        self._start_mps()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self.children.reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        server = await asyncio.start_unix_server(self._serve, self.paths.supervisor_socket)
        self.children.spawn(POOL, [
            sys.executable, "-m", "mux_runtime", "pool", "--socket", str(self.paths.pool_socket),
            "--arena-bytes", str(self.arena_bytes),
        ])  # fmt: skip
        self._start_brain()
        await self.done.wait()
        server.close()
        await self._kill_rest()
        for path in self.paths.run_dir.glob("*.sock"):
            path.unlink(missing_ok=True)
        return self.code

    def _start_mps(self) -> None:
        """Blocks until the daemon answers: a host that comes before it would see the whole GPU."""
        if self.mps is None:
            return
        self.mps.paths.prepare()
        daemon = self.children.spawn(MPS, self.mps.daemon_argv, self.mps.paths.environment())
        try:
            self.mps.wait_until_up(lambda: None if daemon.process.poll() is None else daemon.tail())
        except MpsUnavailable:
            daemon.process.kill()
            daemon.process.wait()
            raise

    def _start_brain(self) -> None:
        if not self.stopping and not self.done.is_set():
            self.brain_started = asyncio.get_running_loop().time()
            self.children.spawn(BRAIN, self.brain_argv)

    def _ended(self, child: Child, code: int) -> None:
        if child.name == BRAIN:
            self._brain_ended(code, child)
        elif child.name == POOL:
            self._finish(1 if not self.stopping else self.code, f"pool owner ended: {child.tail()}")
        elif child.name == MPS:
            self._finish(1 if not self.stopping else self.code, f"MPS daemon ended: {child.tail()}")
        else:
            _log.info("host_exited name=%s pid=%d code=%d", child.name, child.pid, code)
            self._tell({"event": "exited", "name": child.name, "pid": child.pid, "code": code,
                        "tail": child.tail()})  # fmt: skip

    def _brain_ended(self, code: int, child: Child) -> None:
        self._kill_hosts()
        if self.stopping or code == UNUSABLE:
            self._finish(code if code == UNUSABLE else 0, f"brain ended: {child.tail()}")
            return
        loop = asyncio.get_running_loop()
        lived = loop.time() - self.brain_started
        self.failures = 0 if lived > _STABLE_S else self.failures + 1
        _log.error("brain_died code=%d failures=%d tail=%s", code, self.failures, child.tail())
        if self.failures > len(_PAUSES_S):
            self._finish(1, "the brain does not stay up")
            return
        loop.call_later(_PAUSES_S[max(0, self.failures - 1)], self._start_brain)

    def _finish(self, code: int, why: str) -> None:
        if not self.done.is_set():
            (_log.info if code == 0 else _log.error)("unit_ends code=%d why=%s", code, why)
            self.code = code
            self.done.set()

    def _asked_to_stop(self) -> None:
        if self.stopping or not self.children.signal(BRAIN, signal.SIGTERM):
            self._finish(0, "asked to stop at once")
            return
        self.stopping = True
        loop = asyncio.get_running_loop()
        loop.call_later(self.drain_s + _GRACE_S, self._finish, 0, "drained too long")

    def _kill_hosts(self) -> None:
        for name in self.children.names:
            if name not in (BRAIN, POOL, MPS):
                self.children.signal(name, signal.SIGKILL)

    async def _kill_rest(self) -> None:
        """The pool owner after those that map its memory; the MPS daemon after its clients."""
        for name in sorted(self.children.names, key=lambda n: n == POOL):
            if name != MPS:
                self.children.signal(name, signal.SIGKILL)
        await self._until_gone(keep=MPS)
        if self.mps is not None:
            await asyncio.to_thread(self.mps.quit)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._until_gone(), _QUIT_S)
            self.children.signal(MPS, signal.SIGKILL)
            await self._until_gone()
            end_leftovers(self.mps.paths.pipe)

    async def _until_gone(self, keep: str = "") -> None:
        while set(self.children.names) - {keep}:
            self.children.reap()
            await asyncio.sleep(0.01)

    def _tell(self, message: protocol.Message) -> None:
        if self.brain is not None and not self.brain.is_closing():
            self.brain.write(protocol.encode(message))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One brain's connection; what it started ends with it."""
        self.brain = writer
        try:
            while line := await reader.readline():
                self._obey(protocol.decode(line))
        except (OSError, ValueError) as error:
            _log.error("brain_connection %s", error)
        finally:
            self._kill_hosts()
            writer.close()

    def _obey(self, message: protocol.Message) -> None:
        name = str(message["name"])
        if message["op"] == "kill":
            self.children.signal(name, signal.SIGKILL)
            return
        try:
            if self.children.find(name) is not None:
                raise OSError(f"{name} still runs")
            child = self.children.spawn(name, message["argv"], message["env"])
        except OSError as error:
            self._tell({"event": "exited", "name": name, "pid": 0, "code": 1,
                        "tail": f"cannot start {message['argv'][:1]}: {error}"})  # fmt: skip
            return
        self._tell({"event": "started", "name": name, "pid": child.pid})


def parser(role: str) -> argparse.ArgumentParser:
    """The arguments of a unit, which its brain gets as they are."""
    made = argparse.ArgumentParser(prog=f"python -m mux_runtime {role}")
    made.add_argument("--spec", required=True, type=Path, help="unit spec to start from")
    made.add_argument("--run-dir", required=True, type=Path, help="sockets, logs, last spec")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on")
    made.add_argument("--http-port", type=int, default=8000)
    made.add_argument("--internal-port", type=int, default=8001)
    made.add_argument("--metrics-port", type=int, default=8080)
    made.add_argument("--control-port", type=int, default=9090)
    return made


def main(argv: Sequence[str]) -> int:
    arguments = parser("unit").parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    paths = UnitPaths(run_dir=arguments.run_dir)
    try:
        spec = newest_spec(arguments.spec, paths.spec)
    except SpecError as error:
        print(f"unit: {error}", file=sys.stderr)
        return UNUSABLE
    paths.prepare()
    try:
        mps = _gpu(spec, paths)
    except GpuUnfit as error:
        print(f"unit: {error.reason}: {error}", file=sys.stderr)
        return 1 if error.may_pass else UNUSABLE
    supervisor = Supervisor(
        paths=paths,
        brain_argv=[sys.executable, "-m", "mux_runtime", "brain", *argv],
        arena_bytes=spec.memory_bytes // spec.unit_bytes * spec.unit_bytes,
        drain_s=max((m.drain_timeout_s for m in spec.members), default=0.0),
        mps=mps,
    )
    os.umask(0o077)
    try:
        return asyncio.run(supervisor.run())
    except PeerError as error:
        print(f"unit: {error}", file=sys.stderr)
        return 1


def _gpu(spec: UnitSpec, paths: UnitPaths) -> MpsControl | None:
    """What shares the unit's GPU, which every child then sees alone. Raises GpuUnfit."""
    if spec.device is not Device.CUDA:
        return None
    # Our own former life must not look like somebody else's processes.
    end_leftovers(paths.mps.pipe)
    try:
        with open_nvml() as nvml:
            gpu = choose_gpu(nvml.devices(), gpus=spec.gpus)
    except NvmlUnavailable as error:
        raise GpuUnfit(f"unit {spec.unit}: device CUDA, but {error}; use a machine with an NVIDIA "
                       "GPU, or runtime.device: CPU", reason=Unfit.NO_GPU) from error  # fmt: skip
    check_mps()
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    return MpsControl(paths=paths.mps)
