"""The brain's life: parts together, serve, drain on SIGTERM, end.

Exit code 0 after a drain, 2 for a spec that must change first, 1 for anything the supervisor
should try again.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
import uuid
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from mux_core.errors import InvariantError, MuxError, SpecError
from mux_core.unitspec import Device, UnitSpec
from mux_runtime.brain.control import Bell, UnitControl, serve_control
from mux_runtime.brain.gates import CoreGate, FileGate, StartGate
from mux_runtime.brain.hosts import SupervisedHosts, threads
from mux_runtime.brain.members import UnitMembers, check_floors, check_member
from mux_runtime.brain.report import unit_status
from mux_runtime.control import control_pb2 as pb
from mux_runtime.front.app import Front
from mux_runtime.kvpool.allocator import Span, open_allocator
from mux_runtime.kvpool.client import PoolClient
from mux_runtime.metrics import UnitCollector, serve_metrics
from mux_runtime.scheduler.unit import UnitScheduler
from mux_runtime.sm.partition import MpsPartition, NoPartition, SmPartitioner
from mux_runtime.supervisor.main import UNUSABLE, UnitPaths, newest_spec, parser

_log = logging.getLogger("brain")

_SYNC_AT_LEAST_S: Final = 1.0


class PoolDoor:
    """The pool owner as the brain needs it; blocking, one call at a time, for threads."""

    def __init__(self, path: Path) -> None:
        self._client = PoolClient.connect(str(path))
        self._mine = threading.Lock()

    def drop(self, arena: str) -> None:
        with self._mine:
            self._client.drop(arena)

    def drop_all_but(self, arenas: Sequence[str]) -> None:
        """Drops weights that a former brain's spec had and this one's has not."""
        with self._mine:
            for name in self._client.state().sealed:
                if name not in arenas:
                    self._client.drop(name)

    def give_back(self, spans: Sequence[Span], unit_bytes: int) -> None:
        """Pages under reserved units are never touched again by KV."""
        with self._mine:
            for span in spans:
                self._client.punch(span.start * unit_bytes, span.units * unit_bytes)

    def close(self) -> None:
        self._client.close()


@dataclass(slots=True)
class Brain:
    """One unit's deciding process. Lives in one event loop."""

    spec: UnitSpec
    paths: UnitPaths
    ports: Namespace
    start_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    bell: Bell = field(default_factory=Bell)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    answering: frozenset[str] = frozenset()
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    pool: PoolDoor = field(init=False)
    hosts: SupervisedHosts = field(init=False)
    scheduler: UnitScheduler = field(init=False)
    members: UnitMembers = field(init=False)
    front: Front = field(init=False)

    def __post_init__(self) -> None:
        spec = self.spec
        self.pool = PoolDoor(self.paths.pool_socket)
        self.pool.drop_all_but([f"{m.model}:{m.path}:{m.dtype}" for m in spec.members])
        self.hosts = SupervisedHosts(
            paths=self.paths, gate=_gate(spec, self.paths), unit_bytes=spec.unit_bytes,
            wanted=lambda model: self.members.wanted(model), drop_weights=self.pool.drop,
            partition=_partition(spec, self.paths),
            device="cpu" if spec.device is Device.CPU else "cuda",
        )  # fmt: skip
        self.scheduler = UnitScheduler(
            allocator=open_allocator(spec.memory_bytes // spec.unit_bytes), starter=self.hosts,
            unit_bytes=spec.unit_bytes, on_reserved=self._give_back,
        )  # fmt: skip
        self.members = UnitMembers(self.scheduler, spec, self.paths.spec)
        self.registry.register(UnitCollector(self.members))
        self.front = Front(self.scheduler, namespace=spec.namespace, pool=spec.pool,
                           unit=spec.unit, registry=self.registry)  # fmt: skip

    async def run(self) -> None:
        """Serves until told to stop, then drains."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        host = self.ports.host
        await self.hosts.connect()
        metrics = await serve_metrics(self.registry, host, self.ports.metrics_port)
        await self.front.start(host, self.ports.http_port, self.ports.internal_port)
        control = await serve_control(
            UnitControl(self.members, self.status, self.bell), host, self.ports.control_port
        )
        self.members.keep()
        self.members.reconcile()
        following = asyncio.create_task(self._follow())
        _log.info("unit_up unit=%s allocator=%s", self.spec.unit, self.scheduler.allocator.kind)
        await self._until_told(following)
        await self.members.drain()
        following.cancel()
        await self.front.close()
        await self.scheduler.close()
        await control.stop(0.2)
        await metrics.cleanup()
        await self.hosts.close()
        self.pool.close()

    async def _until_told(self, following: asyncio.Task[None]) -> None:
        """Until SIGTERM; a bug of ours ends this process, so that a fresh one goes on."""
        waits = [asyncio.create_task(event.wait())
                 for event in (self.stop, self.scheduler.rounds.broken)]  # fmt: skip
        await asyncio.wait([*waits, following], return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if following.done():
            following.result()
        if self.scheduler.rounds.broken.is_set():
            raise InvariantError("the unit scheduler is in doubt of itself; it starts anew")

    def status(self) -> pb.UnitStatus:
        return unit_status(self.members, self.start_id, answering=self.answering,
                           unanswerable=self.front.failures(),
                           judged=self.front.judged())  # fmt: skip

    async def _follow(self) -> None:
        """Brings front and watchers in line with every change of the scheduler."""
        while True:
            self.scheduler.rounds.changed.clear()
            serving = frozenset(m.model for m in self.scheduler.models())
            await self.front.sync_models(tuple(self.scheduler.members))
            self.answering = serving - set(self.front.failures())
            self.members.note_progress()
            self.bell.ring()
            try:
                async with asyncio.timeout(_SYNC_AT_LEAST_S):
                    await self.scheduler.rounds.changed.wait()
            except TimeoutError:
                continue

    def _give_back(self, spans: Sequence[Span]) -> None:
        asyncio.get_running_loop().run_in_executor(
            None, self.pool.give_back, spans, self.spec.unit_bytes
        )


def _gate(spec: UnitSpec, paths: UnitPaths) -> StartGate:
    if spec.device is Device.CPU:
        return CoreGate(threads(100))
    return FileGate(paths.run_dir / "gpu-start.lock")


def _partition(spec: UnitSpec, paths: UnitPaths) -> SmPartitioner:
    return NoPartition() if spec.device is Device.CPU else MpsPartition.of(paths.mps)


def _check(spec: UnitSpec) -> None:
    refusals = [check_member(spec, member) for member in spec.members]
    for refusal in (*refusals, check_floors(spec)):
        if refusal is not None:
            raise SpecError(refusal.message)


async def _serve(arguments: Namespace, spec: UnitSpec) -> None:
    await Brain(spec, UnitPaths(run_dir=arguments.run_dir), arguments).run()


def _do_without_torch() -> None:
    """Tokenizers need no torch; with it they cost 400 MiB and seconds of start."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def main(argv: Sequence[str]) -> int:
    _do_without_torch()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    arguments = parser("brain").parse_args(argv)
    try:
        spec = newest_spec(arguments.spec, UnitPaths(run_dir=arguments.run_dir).spec)
        _check(spec)
        asyncio.run(_serve(arguments, spec))
    except SpecError as error:
        print(f"brain: {error}", file=sys.stderr)
        return UNUSABLE
    except MuxError as error:
        print(f"brain: {error}", file=sys.stderr)
        return 1
    return 0
