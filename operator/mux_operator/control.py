"""gRPC to units and gateways: what they say is kept, what they are told is awaited.

One watch per process that should be there; it is opened again for as long as the process is
wanted. What a unit said last stays known while its address stays, however long it is silent.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import grpc
import grpc.aio

from mux_core.errors import PeerError
from mux_core.rates import Sample
from mux_core.routes import RouteTable
from mux_core.routes import to_json as routes_json
from mux_core.snapshot import GatewayAddress, MemberReport, UnitAddress, UnitReport
from mux_core.tally import Latencies, Tally
from mux_core.units import ModelName, UnitId
from mux_core.unitspec import UnitSpec
from mux_core.unitspec import to_json as unit_json
from mux_operator.control_stubs import control_pb2 as pb
from mux_operator.control_stubs.control_pb2_grpc import GatewayControlStub, UnitControlStub

log = logging.getLogger(__name__)

INTERVAL_S: Final = 1.0
CALL_S: Final = 5.0
_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A unit's or gateway's answer to a wanted state."""

    accepted: bool
    generation: int
    message: str = ""


class Links:
    """The watches of one pool's units and its namespace's gateways; used from one event loop.

    `changed` is called when a status differs in more than its counters. `clock` is the epoch's.
    """

    def __init__(self, *, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._units: dict[UnitId, _UnitLink] = {}
        self._gateways: dict[GatewayAddress, _GatewayLink] = {}

    def follow(
        self, units: Mapping[UnitId, UnitAddress], gateways: tuple[GatewayAddress, ...]
    ) -> None:
        """Watches exactly these processes from now on."""
        for unit, link in list(self._units.items()):
            if units.get(unit) != link.address:
                self._units.pop(unit).close()
        for unit, address in sorted(units.items()):
            if unit not in self._units:
                self._units[unit] = _UnitLink(unit, address, self._clock, self._changed)
        for known in [known for known in self._gateways if known not in gateways]:
            self._gateways.pop(known).close()
        for gateway in gateways:
            if gateway not in self._gateways:
                self._gateways[gateway] = _GatewayLink(gateway, self._clock, self._changed)

    def reports(self) -> dict[UnitId, UnitReport]:
        """What each unit said last."""
        return {u: link.report for u, link in sorted(self._units.items()) if link.report}

    def tables(self) -> dict[str, int]:
        """The route table generation of each gateway that answers."""
        return {g.name: link.generation for g, link in sorted(self._gateways.items())
                if link.generation is not None}  # fmt: skip

    def samples(self) -> tuple[Sample, ...]:
        """The last arrival counters of every source."""
        links = (*self._units.values(), *self._gateways.values())
        return tuple(link.sample for link in links if link.sample is not None)

    def sources(self) -> frozenset[str]:
        return frozenset(link.source for link in (*self._units.values(), *self._gateways.values()))

    async def apply(self, unit: UnitId, spec: UnitSpec) -> Reply:
        """Tells a unit its wanted state. Raises PeerError when it does not answer."""
        link = self._units.get(unit)
        if link is None:
            raise PeerError(f"unit {unit}: not followed, so it cannot be told its spec")
        reply = await link.call(unit_json(spec))
        return Reply(accepted=reply.accepted, generation=reply.generation,
                     message=reply.message or reply.reason)  # fmt: skip

    async def push(self, table: RouteTable) -> None:
        """Gives every gateway the table; one that does not answer gets it when it does."""
        await asyncio.gather(*(link.push(table) for link in self._gateways.values()))

    async def close(self) -> None:
        links = (*self._units.values(), *self._gateways.values())
        for link in links:
            link.close()
        await asyncio.gather(*(link.closed() for link in links), return_exceptions=True)
        self._units.clear()
        self._gateways.clear()


class _Link:
    """One process: a channel and a watch that is opened again when it breaks."""

    def __init__(self, source: str, target: str, changed: Callable[[], None]) -> None:
        self.source = source
        self.sample: Sample | None = None
        self._changed = changed
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._task = asyncio.create_task(self._follow(), name=f"watch {source}")

    def close(self) -> None:
        self._task.cancel()

    async def closed(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _follow(self) -> None:
        pause = 0.1
        try:
            while True:
                try:
                    await self._watch()
                    pause = 0.1
                except grpc.aio.AioRpcError as error:
                    log.debug("watch of %s ended: %s", self.source, error.code())
                    pause = min(pause * 2, 2.0)
                await asyncio.sleep(pause * (0.5 + random.random()))
        finally:
            await self._channel.close(None)

    async def _watch(self) -> None:
        raise NotImplementedError


class _UnitLink(_Link):
    def __init__(
        self, unit: UnitId, address: UnitAddress, clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        self.address = address
        self.report: UnitReport | None = None
        self._clock = clock
        self._unit = unit
        super().__init__(f"unit/{unit}", f"{address.host}:{address.control}", changed)
        self._stub = UnitControlStub(self._channel)

    async def call(self, document: str) -> pb.ApplyReply:
        try:
            return await self._stub.Apply(pb.ApplyRequest(spec_json=document), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise PeerError(f"{self.source}: Apply answered {error.code().name}: "
                            f"{error.details()}") from error  # fmt: skip

    async def _watch(self) -> None:
        async for status in self._stub.Watch(pb.WatchRequest(interval_s=INTERVAL_S)):
            if status.unit and status.unit != self._unit:
                log.warning("%s answers as unit %s; its status is not used", self.source,
                            status.unit)  # fmt: skip
                continue
            before, self.report = self.report, unit_report(status, self._unit, self._clock())
            self.sample = unit_sample(status, self.source, self._clock())
            if before is None or not _same_news(before, self.report):
                self._changed()


class _GatewayLink(_Link):
    def __init__(
        self, gateway: GatewayAddress, clock: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        self.generation: int | None = None
        self._clock = clock
        super().__init__(f"gateway/{gateway.name}", f"{gateway.host}:{gateway.control}", changed)
        self._stub = GatewayControlStub(self._channel)

    async def push(self, table: RouteTable) -> None:
        request = pb.ApplyRoutesRequest(routes_json=routes_json(table))
        try:
            reply = await self._stub.Apply(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            log.warning("%s did not take route table %d: %s", self.source, table.generation,
                        error.code().name)  # fmt: skip
            self.generation = None
            return
        if reply.accepted:
            self.generation = reply.generation
        else:
            log.warning("%s refused route table %d: %s %s", self.source, table.generation,
                        reply.reason, reply.message)  # fmt: skip

    async def _watch(self) -> None:
        try:
            async for status in self._stub.Watch(pb.WatchRequest(interval_s=INTERVAL_S)):
                changed = self.generation != status.generation
                self.generation = status.generation
                self.sample = gateway_sample(status, self.source, self._clock())
                if changed:
                    self._changed()
        finally:
            self.generation = None


def unit_report(status: pb.UnitStatus, unit: UnitId, at: float) -> UnitReport:
    """A status off the wire as the decision's value."""
    return UnitReport(
        unit=unit, start_id=status.start_id, at=at, generation=status.generation,
        applied_generation=status.applied_generation,
        members={ModelName(m.model): _member_report(m) for m in status.members},
        kv_total_bytes=status.kv_total_bytes, kv_free_bytes=status.kv_free_bytes,
    )  # fmt: skip


def unit_sample(status: pb.UnitStatus, source: str, at: float) -> Sample:
    return Sample(
        source=source, start_id=status.start_id, at=at,
        arrivals={ModelName(m.model): m.counters.arrivals for m in status.members},
        waiting={ModelName(m.model): m.waiting for m in status.members},
        tallies={ModelName(m.model): _tally(m.counters, m.kv_used_bytes) for m in status.members},
    )  # fmt: skip


def gateway_sample(status: pb.GatewayStatus, source: str, at: float) -> Sample:
    return Sample(
        source=source, start_id=status.start_id, at=at,
        arrivals={ModelName(m): c.arrivals for m, c in status.models.items()},
        tallies={ModelName(m): _tally(c, None) for m, c in status.models.items()},
    )  # fmt: skip


def _tally(told: pb.Counters, kv_used_bytes: int | None) -> Tally:
    return Tally(
        finished=told.finished, judged=told.slo_judged, met=told.slo_met,
        ttft=Latencies(count=told.ttft_count, seconds=told.ttft_seconds_sum,
                       by_bucket=tuple(told.ttft_counts)),
        tpot=Latencies(count=told.tpot_count, seconds=told.tpot_seconds_sum,
                       by_bucket=tuple(told.tpot_counts)),
        kv_used_bytes=kv_used_bytes,
    )  # fmt: skip


def _member_report(status: pb.MemberStatus) -> MemberReport:
    counters = status.counters
    return MemberReport(
        model=ModelName(status.model), served_name=status.served_name, state=status.state,
        reason=status.reason, message=status.message, permanent=status.permanent,
        waiting=status.waiting, running=status.running, kv_used_bytes=status.kv_used_bytes,
        kv_quota_bytes=status.kv_quota_bytes, weight_bytes=status.weight_bytes,
        restarts=sum(host.restarts for host in status.hosts),
        ttft_seconds_sum=counters.ttft_seconds_sum, ttft_count=counters.ttft_count,
        tpot_seconds_sum=counters.tpot_seconds_sum, tpot_count=counters.tpot_count,
        rejected=counters.rejected, seen_sms=tuple(host.seen_sms for host in status.hosts),
    )  # fmt: skip


def _same_news(before: UnitReport, after: UnitReport) -> bool:
    """Whether two reports differ in counters and times alone."""
    return _news(before) == _news(after)


def _news(report: UnitReport) -> object:
    states = {m: (r.state, r.reason, r.message, r.served_name) for m, r in report.members.items()}
    return replace(report, at=0.0, members={}, kv_free_bytes=0), states
