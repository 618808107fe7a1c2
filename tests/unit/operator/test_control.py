"""Links to real gRPC servers: what they say is kept, what they are told arrives."""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from mux_core.routes import RouteTable
from mux_core.snapshot import GatewayAddress, UnitAddress
from mux_core.tally import Latencies, Tally
from mux_core.units import ModelName, UnitId
from mux_core.unitspec import Device, UnitSpec, from_json
from mux_operator.control import Links
from mux_operator.control_stubs import control_pb2 as pb
from mux_operator.control_stubs.control_pb2_grpc import (
    GatewayControlServicer,
    UnitControlServicer,
    add_GatewayControlServicer_to_server,
    add_UnitControlServicer_to_server,
)

U = UnitId("u0")
SPEC = UnitSpec(unit="u0", pool="p", namespace="ns", generation=4, incarnation=1,
                device=Device.CPU, gpus=1, memory_bytes=1 << 20)  # fmt: skip


class Unit(UnitControlServicer):
    """A unit that says the same until its status is changed."""

    def __init__(self) -> None:
        self.status = pb.UnitStatus(unit="u0", start_id="one", generation=1)
        counters = pb.Counters(arrivals=3, finished=2, ttft_count=2, ttft_seconds_sum=3.0,
                               ttft_counts=(1, 1), tpot_count=1, tpot_seconds_sum=0.5)  # fmt: skip
        self.status.members.add(model="a", state="Starting", counters=counters, kv_used_bytes=64,
                                waiting=5)  # fmt: skip
        self.told: list[UnitSpec] = []
        self.refusal = ""

    async def Apply(self, request: pb.ApplyRequest, context: object) -> pb.ApplyReply:
        self.told.append(from_json(request.spec_json))
        return pb.ApplyReply(accepted=not self.refusal, generation=4, message=self.refusal)

    async def Watch(self, request: object, context: object) -> AsyncIterator[pb.UnitStatus]:
        while True:
            yield self.status
            await asyncio.sleep(0.02)


class Gateway(GatewayControlServicer):
    """A gateway that has whatever table it was given."""

    generation = 0

    async def Apply(self, request: pb.ApplyRoutesRequest, context: object) -> pb.ApplyReply:
        self.generation = 7
        return pb.ApplyReply(accepted=True, generation=7)

    async def Watch(self, request: object, context: object) -> AsyncIterator[pb.GatewayStatus]:
        while True:
            counters = pb.Counters(arrivals=9, slo_judged=4, slo_met=3)
            yield pb.GatewayStatus(start_id="g", generation=self.generation,
                                   models={"a": counters})  # fmt: skip
            await asyncio.sleep(0.02)


class Served:
    """Both on one port, and links to them."""

    def __init__(self) -> None:
        self.unit, self.gateway = Unit(), Gateway()
        self.changes = 0
        self.links = Links(clock=lambda: 50.0, changed=self._changed)

    def _changed(self) -> None:
        self.changes += 1


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made, server = Served(), grpc.aio.server()
    add_UnitControlServicer_to_server(made.unit, server)
    add_GatewayControlServicer_to_server(made.gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    made.links.follow({U: UnitAddress(host="127.0.0.1", control=port)},
                      (GatewayAddress(name="g0", host="127.0.0.1", control=port),))  # fmt: skip
    async with asyncio.timeout(10):
        while len(made.links.samples()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    yield made
    await made.links.close()
    await server.stop(None)


async def test_what_a_unit_and_a_gateway_say_is_known(served: Served) -> None:
    report = served.links.reports()[U]
    assert (report.start_id, report.generation) == ("one", 1)
    assert report.members[ModelName("a")].state == "Starting"
    arrivals = {sample.source: sample.arrivals for sample in served.links.samples()}
    assert arrivals == {"unit/u0": {"a": 3}, "gateway/g0": {"a": 9}}
    waiting = {sample.source: sample.waiting for sample in served.links.samples()}
    assert waiting == {"unit/u0": {"a": 5}, "gateway/g0": {}}
    tallies = {sample.source: sample.tallies[ModelName("a")] for sample in served.links.samples()}
    assert tallies == {
        "unit/u0": Tally(finished=2, kv_used_bytes=64, tpot=Latencies(count=1, seconds=0.5),
                         ttft=Latencies(count=2, seconds=3.0, by_bucket=(1, 1))),
        "gateway/g0": Tally(judged=4, met=3),
    }  # fmt: skip


async def test_only_news_is_a_change(served: Served) -> None:
    before = served.changes
    served.unit.status.members[0].counters.arrivals = 30
    await asyncio.sleep(0.2)
    assert served.changes == before
    served.unit.status.members[0].state = "Serving"
    async with asyncio.timeout(10):
        while served.changes == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert served.links.reports()[U].members[ModelName("a")].state == "Serving"


async def test_a_unit_is_told_and_its_refusal_is_heard(served: Served) -> None:
    assert (await served.links.apply(U, SPEC)).accepted
    served.unit.refusal = "memory_bytes: too small"
    reply = await served.links.apply(U, SPEC)
    assert (reply.accepted, reply.message) == (False, "memory_bytes: too small")
    assert served.unit.told == [SPEC, SPEC]


async def test_a_gateway_has_the_table_it_took(served: Served) -> None:
    await served.links.push(RouteTable(namespace="ns", generation=7))
    assert served.links.tables() == {"g0": 7}


async def test_who_is_not_followed_any_more_is_forgotten(served: Served) -> None:
    served.links.follow({}, ())
    assert served.links.reports() == {}
    assert served.links.sources() == frozenset()
