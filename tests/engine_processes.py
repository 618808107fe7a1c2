"""Real engine host processes on a real pool owner, for tests that kill them."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine_builders import KnownModel
from mux_core.engine import Grant, KVGeometry, KVHandoff, Phase, Row, StepResult
from mux_runtime.kvpool.allocator import Allocator, Owner, open_allocator
from mux_runtime.wire import HostLink

UNITS = 4096
UNIT_BYTES = 2048
STARTS_WITHIN = 120.0


def _start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    # It must not outlive the tests, however they end.
    line = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", *arguments]
    with log.open("ab") as output:
        return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


@dataclass
class Process:
    """One life of one host and the scheduler's ledger of it."""

    owner: Owner
    popen: subprocess.Popen[bytes]
    link: HostLink
    geometry: KVGeometry
    owned: set[Row] = field(default_factory=set)
    steps: int = 0

    async def step(self, phase: Phase, lease: Sequence[Row], budget: int) -> StepResult:
        self.steps += 1
        return await self.link.step(
            Grant(step=self.steps, phases=frozenset({phase}), token_budget=budget, max_seqs=16,
                  lease=tuple(lease))
        )  # fmt: skip

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    def freeze(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)


class Unit:
    """A pool owner, a scheduler's socket and the hosts that were started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.allocator: Allocator = open_allocator(UNITS)
        self.helloes: dict[str, asyncio.Future[HostLink]] = {}
        self.links: list[HostLink] = []
        self._server: asyncio.Server | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> "Unit":
        self._processes.append(_start(
            self.log, "mux_runtime", "pool", "--socket", str(self.folder / "pool.sock"),
            "--arena-bytes", str(UNITS * UNIT_BYTES),
        ))  # fmt: skip
        self._server = await asyncio.start_unix_server(self._accept, self.folder / "hosts.sock")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for link in self.links:
            link.disconnect()
            await link.wait_disconnected()
        for process in self._processes:
            process.kill()
            process.wait()

    async def start(self, model: KnownModel, phase: Phase, epoch: int, *arguments: str) -> Process:
        """An opened host."""
        host_id = f"{model.name}-{phase}"
        hello = self.helloes[host_id] = asyncio.get_running_loop().create_future()
        popen = _start(
            self.log, "mux_runtime.engines.torch", "--connect", str(self.folder / "hosts.sock"),
            "--host-id", host_id, "--epoch", str(epoch), "--phase", phase.value,
            "--pool", str(self.folder / "pool.sock"), "--model-dir", str(model.folder),
            "--unit-bytes", str(UNIT_BYTES), *arguments,
        )  # fmt: skip
        self._processes.append(popen)
        async with asyncio.timeout(STARTS_WITHIN):
            link = await hello
            opened = await link.open()
        assert link.hello.epoch == epoch
        return Process(owner=Owner(host_id, epoch), popen=popen, link=link,
                       geometry=opened.geometry)  # fmt: skip

    def lease(self, process: Process, rows: int) -> tuple[Row, ...]:
        return self.allocator.lease(process.owner, process.geometry, rows)

    async def step(self, process: Process, phase: Phase, budget: int = 64) -> StepResult:
        """One step with a small lease; keeps the ledger."""
        lease = self.lease(process, 8)
        result = await process.step(phase, lease, budget)
        process.owned.update(lease[: result.used])
        self.allocator.free(lease[result.used :], process.geometry)
        self.allocator.free(result.freed, process.geometry)
        process.owned.difference_update(result.freed)
        for kv in result.handoffs.values():
            process.owned.difference_update(kv.rows)
        stats = await process.link.stats()
        assert stats.owned_rows == len(process.owned)
        return result

    def adopt(self, process: Process, kv: KVHandoff) -> None:
        self.allocator.retag(kv.rows, process.geometry, process.owner)
        process.owned.update(kv.rows)

    def assert_ledger(self, *processes: Process) -> None:
        """Free and owned units are all units; every owner has what its host owned."""
        self.allocator.audit()
        for process in processes:
            units = len(process.owned) * process.geometry.row_units
            assert self.allocator.used(process.owner) == units
        owned = sum(self.allocator.used(process.owner) for process in processes)
        assert self.allocator.free_units + owned == UNITS

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = await HostLink.accept(reader, writer)
        self.links.append(link)
        self.helloes[link.hello.host_id].set_result(link)


def wait_gone(popen: subprocess.Popen[bytes], seconds: float = 30.0) -> int:
    """The exit code of a process that ends by itself."""
    deadline = time.monotonic() + seconds
    while popen.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert popen.returncode is not None, "still running"
    return popen.returncode
