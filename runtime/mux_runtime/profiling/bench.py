"""Real engine hosts on a real pool owner, without a scheduler: what a profile is measured on.

Processes are those of a unit; they end with this one, however it ends.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mux_core.costmodel.profile_set import threads_of
from mux_core.engine import Grant, KVHandoff, Phase, Row, Sampling, StepResult
from mux_core.errors import PeerError
from mux_core.units import Bytes
from mux_runtime.engines.host import EngineDescription
from mux_runtime.kvpool.allocator import Allocator, Owner, open_allocator
from mux_runtime.sm.partition import NoPartition, SmPartitioner
from mux_runtime.supervisor.children import Child, Children
from mux_runtime.wire import HostLink

STARTS_WITHIN_S: Final = 180.0
NO_PARTITION: Final = NoPartition()
_REAP_S: Final = 0.2
_ENDLESS: Final = Sampling(max_tokens=1 << 30, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What hosts run on: `name` as the engine knows it, and the cores their threads share."""

    name: str
    cores: int

    def threads(self, percent: int) -> int:
        return threads_of(percent, self.cores)


@dataclass(slots=True, kw_only=True)
class BenchHost:
    """One opened host. Requests given to it own rows until `clear`."""

    name: str
    phase: Phase
    pid: int
    link: HostLink
    card: EngineDescription
    allocator: Allocator
    owner: Owner
    steps: int = 0
    resident: dict[str, tuple[Row, ...]] = field(default_factory=dict)

    async def adopt(self, rid: str, context: int) -> None:
        """A request whose next decode step reads `context` tokens of KV.

        Its rows hold whatever the pool holds: a step takes as long for any content.
        """
        shape = self.card.geometry
        rows = self.allocator.lease(self.owner, shape, shape.rows_for(context))
        self.resident[rid] = rows
        kv = KVHandoff(geometry=shape, rows=rows, num_tokens=context - 1)
        await self.link.add(rid, _tokens(context, self.card.vocab), _ENDLESS,
                            prompt_len=context - 1, kv=kv)  # fmt: skip

    async def ask(self, rid: str, tokens: int) -> None:
        """A prompt to prefill; it leaves the host with its first token."""
        await self.link.add(rid, _tokens(tokens, self.card.vocab), _ENDLESS,
                            prompt_len=tokens, detach=True)  # fmt: skip

    async def step(self, *, rows: int, budget: int, seqs: int) -> StepResult:
        """One step; rows it took for growing requests stay theirs, handed off ones are free."""
        shape = self.card.geometry
        lease = self.allocator.lease(self.owner, shape, rows) if rows else ()
        self.steps += 1
        result = await self.link.step(Grant(
            step=self.steps, phases=frozenset({self.phase}), token_budget=budget,
            max_seqs=seqs, lease=lease))  # fmt: skip
        self.allocator.free(lease[result.used :], shape)
        for handoff in result.handoffs.values():
            self.allocator.free(handoff.rows, shape)
        return result

    async def clear(self) -> None:
        """Takes every request back and frees its rows."""
        for rid in list(self.resident):
            kv = await self.link.abort(rid)
            if kv is not None:
                self.allocator.free(kv.rows, self.card.geometry)
            del self.resident[rid]


def _tokens(count: int, vocab: int) -> tuple[int, ...]:
    return tuple((7 * index + 1) % vocab for index in range(count))


class Bench:
    """Starts hosts on one pool. Use `open_bench`."""

    def __init__(
        self, folder: Path, device: Device, unit_bytes: int, arena: Bytes, partition: SmPartitioner
    ) -> None:
        self.folder, self.device, self.unit_bytes = folder, device, unit_bytes
        self._partition = partition
        self.allocator = open_allocator(arena // unit_bytes)
        self._children = Children(folder, self._ended)
        self._helloes: dict[str, asyncio.Future[HostLink]] = {}
        self._links: list[HostLink] = []
        self._serial = 0

    async def start(self, model: str, folder: Path, phase: Phase, percent: int) -> BenchHost:
        """An opened host of a model at a share. SpecError: it cannot serve it, or has no share."""
        self._serial += 1
        name = f"host-{self._serial}"
        hello = self._helloes[name] = asyncio.get_running_loop().create_future()
        self._children.spawn(name, self._argv(name, folder, phase, percent),
                             env=self._partition.environment(percent))  # fmt: skip
        try:
            async with asyncio.timeout(STARTS_WITHIN_S):
                link = await hello
                await link.describe()
                card = await link.open()
                sms = (await link.stats()).sms
        except TimeoutError as error:
            raise PeerError(f"engine host of {model}: not open after {STARTS_WITHIN_S:.0f} s; see "
                            f"{self.folder / name}.log") from error  # fmt: skip
        # A share that is not in force would be written down as one that is.
        await asyncio.to_thread(self._partition.verify, name, pid=link.hello.pid, percent=percent,
                                seen_sms=sms)  # fmt: skip
        return BenchHost(name=name, phase=phase, pid=link.hello.pid, link=link, card=card,
                         allocator=self.allocator, owner=Owner(name, 1))  # fmt: skip

    async def end(self, host: BenchHost) -> None:
        """Ends a host and frees what it owned."""
        await asyncio.to_thread(self._partition.release, host.pid)
        with contextlib.suppress(PeerError):
            await host.link.close()
        self.allocator.reclaim(host.owner)
        while self._children.find(host.name) is not None:
            self._children.reap()
            await asyncio.sleep(0.01)

    async def listen(self, arena: int) -> asyncio.Server:
        """Listens and starts the pool. A host that finds no socket takes its scheduler for gone."""
        server = await asyncio.start_unix_server(self._accept, self.folder / "hosts.sock")
        pool = [sys.executable, "-m", "mux_runtime", "pool", "--socket", str(self._pool_socket),
                "--arena-bytes", str(arena)]  # fmt: skip
        self._children.spawn("pool", pool)
        return server

    async def run(self) -> None:
        """Notices hosts that ended, until cancelled."""
        while True:
            await asyncio.sleep(_REAP_S)
            self._children.reap()

    async def close(self) -> None:
        for link in self._links:
            link.disconnect()
            await link.wait_disconnected()
        for name in self._children.names:
            self._children.signal(name, signal.SIGKILL)
        while self._children.names:
            self._children.reap()
            await asyncio.sleep(0.01)

    @property
    def _pool_socket(self) -> Path:
        return self.folder / "pool.sock"

    def _argv(self, name: str, folder: Path, phase: Phase, percent: int) -> list[str]:
        own_kv = ["--private-kv"] if self.device.name != "cpu" else []
        return [
            sys.executable, "-m", "mux_runtime.engines.torch", *own_kv,
            "--connect", str(self.folder / "hosts.sock"), "--pool", str(self._pool_socket),
            "--host-id", name, "--epoch", "1", "--phase", phase.value,
            "--model-dir", str(folder), "--unit-bytes", str(self.unit_bytes),
            "--device", self.device.name, "--threads", str(self.device.threads(percent)),
        ]  # fmt: skip

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = await HostLink.accept(reader, writer)
        self._links.append(link)
        self._helloes[link.hello.host_id].set_result(link)

    def _ended(self, child: Child, code: int) -> None:
        hello = self._helloes.get(child.name)
        if hello is not None and not hello.done():
            hello.set_exception(PeerError(f"engine {child.name} ended with code {code}: "
                                          f"{child.tail()}"))  # fmt: skip


@asynccontextmanager
async def open_bench(
    folder: Path, device: Device, *, unit_bytes: int, arena: Bytes,
    partition: SmPartitioner = NO_PARTITION,
) -> AsyncIterator[Bench]:  # fmt: skip
    """A bench with a pool of `arena` bytes; everything it started is gone afterwards.

    `folder` is new: a socket that a killed run left would be in the way.
    """
    bench = Bench(folder, device, unit_bytes, arena, partition)
    async with await bench.listen(arena):
        serving = asyncio.create_task(bench.run(), name="profile bench")
        try:
            yield bench
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            await bench.close()
