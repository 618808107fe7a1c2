"""The loop over a cluster in memory and a unit that answers by gRPC: outages, refusals, repeats."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import grpc.aio
import pytest

import world_builders
from mux_core.actions import EnsureService, InspectModel, StartUnit, WriteUnit
from mux_core.errors import PeerError, SpecError
from mux_core.planning import Choice, PlacementProblem, Plan
from mux_core.snapshot import UnitAddress
from mux_core.unitspec import UnitSpec, from_json
from mux_core.verdicts import ConditionType as C
from mux_operator.control_stubs import control_pb2 as pb
from mux_operator.control_stubs import control_pb2_grpc
from mux_operator.metrics import Metrics
from mux_operator.pool_memory import REJECTED_S
from mux_operator.reconciler import Reconciler, Timing
from mux_operator.search import ThreadSearch
from mux_operator.work_queue import WorkQueue
from world_builders import KEY, MemoryCluster, World, a_world, an_llm, kinds

U0 = "pool-r1-u0"
PEER = PeerError("API server: GET pods: 503")


@dataclass
class Unit(control_pb2_grpc.UnitControlServicer):
    """Serves what it is told; `says_no` is why it refuses."""

    world: World
    says_no: str = ""
    spec: UnitSpec | None = None
    told: list[int] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def Apply(self, request: pb.ApplyRequest, context: object) -> pb.ApplyReply:
        wanted = from_json(request.spec_json)
        self.told.append(wanted.generation)
        if self.says_no:
            return pb.ApplyReply(accepted=False, reason="UnitRefusedSpec", message=self.says_no)
        self.spec = wanted
        self.changed.set()
        return pb.ApplyReply(accepted=True, generation=wanted.generation)

    async def Watch(
        self, request: pb.WatchRequest, context: object
    ) -> AsyncIterator[pb.UnitStatus]:
        while True:
            if self.spec is None and U0 in self.world.records:
                self.spec = self.world.records[U0].spec
            if self.spec is not None:
                yield _status(self.spec)
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), request.interval_s)


def _status(spec: UnitSpec) -> pb.UnitStatus:
    members = [pb.MemberStatus(model=m.model, served_name=m.served_name, state="Serving")
               for m in spec.members]  # fmt: skip
    return pb.UnitStatus(unit=spec.unit, start_id=f"s{spec.incarnation}", members=members,
                         generation=spec.generation,
                         applied_generation=spec.generation)  # fmt: skip


@dataclass
class Stage:
    """A loop that works on a world in which time passes."""

    world: World
    cluster: MemoryCluster
    unit: Unit
    search: ThreadSearch
    reconciler: Reconciler
    metrics: Metrics

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                self.world.pass_time()
                self.cluster.mark(KEY)
                await asyncio.sleep(0.02)

    async def looks(self, count: int) -> None:
        seen = self.cluster.observed
        await self.until(lambda: self.cluster.observed >= seen + count)

    def ready(self, name: str) -> bool:
        told = self.world.told.llms
        return name in told and self.world.said(name, C.READY) == ("True", "Ready")

    def cycles(self, result: str) -> float:
        value = self.metrics.registry.get_sample_value(
            "muxserve_reconcile_total", {"kind": "GPUPool", "result": result}
        )
        return value or 0.0


@pytest.fixture
async def world() -> World:
    return a_world(an_llm("a"), gateways=())


@pytest.fixture
async def stage(world: World) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        unit = Unit(world)
        server = grpc.aio.server()
        control_pb2_grpc.add_UnitControlServicer_to_server(unit, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        world.address = lambda name: UnitAddress(host="127.0.0.1", control=port)
        cluster, metrics = MemoryCluster(world), Metrics()
        search = ThreadSearch(world_builders.PLANNER)
        reconciler = Reconciler(cluster, search=search, metrics=metrics, clock=lambda: world.now,
                                timing=Timing(debounce=0.0, resync=60.0))  # fmt: skip
        loop = asyncio.get_running_loop()
        reconciler.queue = WorkQueue(loop.time, debounce_s=0.0, first_pause_s=0.01)
        task = asyncio.create_task(reconciler.run(workers=1))
        yield Stage(world, cluster, unit, search, reconciler, metrics)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_model_joins_the_running_unit_and_its_status_follows(stage: Stage) -> None:
    await stage.until(lambda: stage.ready("a"))
    assert stage.unit.told == [], "what it started with needs no telling"

    stage.world.add(an_llm("b"))
    await stage.until(lambda: stage.ready("b"))

    assert set(stage.unit.told) == {2}
    assert stage.world.placed == {U0: ["a", "b"]}
    assert kinds(stage.cluster.taken).count("StartUnit") == 1
    assert stage.cycles("error") == stage.cycles("bug") == 0


async def test_the_plan_that_is_carried_out_is_shown_while_there_is_a_pool(stage: Stage) -> None:
    await stage.until(lambda: stage.ready("a"))
    sample, labels = stage.metrics.registry.get_sample_value, {"namespace": "models",
                                                               "pool": "pool"}  # fmt: skip
    assert sample("muxserve_plan_age_seconds", labels) is not None
    assert sample("muxserve_plan_objective", {**labels, "kind": "proposed"}) == 1
    stage.world.pool = None
    await stage.looks(2)
    assert sample("muxserve_plan_age_seconds", labels) is None
    assert sample("muxserve_pool_gpus", {**labels, "state": "total"}) is None


async def test_an_api_server_that_comes_back_finds_nothing_lost(stage: Stage) -> None:
    stage.cluster.outages = [PEER] * 3
    await stage.until(lambda: stage.cycles("error") == 3)
    stage.world.add(an_llm("b"))
    stage.cluster.outages = [PEER]
    await stage.until(lambda: stage.ready("a") and stage.ready("b"))
    assert stage.cycles("bug") == 0


async def test_an_outage_between_two_actions_repeats_none_of_them(stage: Stage) -> None:
    """Every second call fails for a while; each pod is still started once."""
    ticking = iter([None, None, PEER] * 8)

    def fail() -> None:
        if (error := next(ticking, None)) is not None:
            raise error

    stage.cluster._fail = fail  # type: ignore[method-assign]
    await stage.until(lambda: stage.ready("a"))
    assert stage.cycles("error") >= 2
    assert kinds(stage.cluster.taken).count("StartUnit") == 1
    assert list(stage.world.carriers) == [(U0, 1)]


async def test_many_marks_are_few_looks(stage: Stage) -> None:
    await stage.until(lambda: stage.ready("a"))
    await stage.looks(2)
    before = stage.cluster.observed
    for _ in range(1000):
        stage.cluster.mark(KEY)
    await stage.looks(1)
    assert stage.cluster.observed - before < 10


async def test_a_refused_spec_is_told_once_and_again_after_an_edit(stage: Stage) -> None:
    await stage.until(lambda: stage.ready("a"))
    stage.unit.says_no = "b: kv_limit_bytes 7; at least one row"
    stage.world.add(an_llm("b"))
    await stage.until(lambda: stage.unit.told == [2])
    await stage.looks(5)
    assert stage.unit.told == [2]
    assert stage.world.said("b", C.RUNTIME_READY) == ("False", "UnitRefusedSpec")
    assert "at least one row" in stage.world.condition("b", C.RUNTIME_READY).message

    stage.unit.says_no = ""
    stage.world.edit("b", priority=3)
    await stage.until(lambda: stage.ready("b"))
    assert set(stage.unit.told) == {2, 3}


async def test_a_service_that_is_not_ours_is_said_and_stops_no_unit(stage: Stage) -> None:
    taken = SpecError("services models/llm-a exists and is not ours; delete or rename it")
    stage.cluster.refuses[EnsureService] = taken
    await stage.until(lambda: stage.ready("a"))
    assert stage.world.condition("a", C.ROUTE_READY).message == str(taken)
    assert stage.cycles("error") == 0


async def test_a_pod_the_cluster_forbids_becomes_a_condition_and_is_asked_for_again_later(
    stage: Stage,
) -> None:
    denied = SpecError("API server: POST pods: 403 Forbidden: exceeded quota")
    attempts: list[str] = []
    stage.cluster.refuses[StartUnit] = denied
    apply = stage.cluster.apply

    async def counted(key: object, action: object) -> None:
        if isinstance(action, StartUnit):
            attempts.append(action.record.unit)
        await apply(KEY, action)  # type: ignore[arg-type]

    stage.cluster.apply = counted  # type: ignore[method-assign, assignment]
    await stage.until(lambda: bool(attempts))
    start = stage.world.now
    await stage.looks(5)
    assert stage.world.now - start < REJECTED_S
    assert attempts == [U0]
    assert stage.world.said("a", C.RUNTIME_READY) == ("False", "UnitNotReady")
    assert stage.world.condition("a", C.READY).message == str(denied)

    stage.cluster.refuses.clear()
    stage.world.now += REJECTED_S
    await stage.until(lambda: stage.ready("a"))
    assert len(attempts) == 2


async def test_a_record_that_cannot_be_written_starts_nothing(stage: Stage) -> None:
    stage.cluster.refuses[WriteUnit] = SpecError("configmaps models/x exists and is not ours")
    await stage.until(lambda: "a" in stage.world.told.llms and stage.world.said(
        "a", C.RUNTIME_READY) == ("False", "UnitNotReady"))  # fmt: skip
    await stage.looks(3)
    assert "StartUnit" not in kinds(stage.cluster.taken)


async def test_an_inspect_run_the_cluster_forbids_is_said(stage: Stage) -> None:
    stage.cluster.refuses[InspectModel] = SpecError("pods models/a-fetch exists and is not ours")
    await stage.looks(3)
    assert stage.world.said("a", C.READY) == ("False", "InspectionFailed")


class Broken:
    """A planner with a bug."""

    name = "broken"

    def search(self, problem: PlacementProblem) -> Iterator[Plan]:
        raise ZeroDivisionError("rates of nothing")


async def test_a_planner_that_fails_leaves_what_runs_and_says_so(stage: Stage) -> None:
    await stage.until(lambda: stage.ready("a"))
    stage.search.planner = Broken()
    stage.world.add(an_llm("b"))
    await stage.until(lambda: "b" in stage.world.told.llms
                      and stage.world.said("b", C.PLACED) == ("False", "PlannerError"))  # fmt: skip
    assert stage.ready("a")
    assert stage.world.said_of_pool(C.PLAN_CURRENT) == ("False", "PlannerError")
    assert stage.world.placed == {U0: ["a"]}


async def test_a_standby_looks_at_nothing_until_it_leads(world: World) -> None:
    leads = asyncio.Event()
    cluster = MemoryCluster(world)
    reconciler = Reconciler(cluster, timing=Timing(debounce=0.0), may_act=leads)
    task = asyncio.create_task(reconciler.run(workers=2))
    await asyncio.sleep(0.05)
    assert cluster.observed == 0
    leads.set()
    async with asyncio.timeout(10):
        await cluster.looked.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_pool_that_left_nothing_behind_is_forgotten(stage: Stage) -> None:
    await stage.until(lambda: stage.ready("a"))
    stage.world.llms.clear()
    stage.world.pool = None
    await stage.until(lambda: not stage.world.records and not stage.reconciler._memories)
    assert stage.world.carriers == {}


class Slow:
    """A search that takes as long as the test likes."""

    profiles = ""

    def __init__(self) -> None:
        self.inner = ThreadSearch(world_builders.PLANNER)
        self.asked = 0
        self.goes_on = asyncio.Event()

    async def choose(self, problem: PlacementProblem, *, deadline_s: float) -> Choice:
        self.asked += 1
        await self.goes_on.wait()
        return await self.inner.choose(problem, deadline_s=deadline_s)

    async def close(self) -> None:
        return


async def test_while_the_planner_works_units_are_repaired_and_the_rest_waits(stage: Stage) -> None:
    await stage.until(lambda: stage.ready("a"))
    slow = Slow()
    stage.reconciler._search = slow
    stage.reconciler._timing = Timing(debounce=0.0, resync=60.0, plan_patience=0.01)
    stage.world.add(an_llm("b"))
    await stage.until(lambda: stage.world.said_of_pool(C.PLAN_CURRENT) == ("Unknown", "Planning"))
    assert stage.world.said("b", C.PLACED) == ("Unknown", "Planning")

    stage.world.die(U0)
    await stage.until(lambda: (U0, 2) in stage.world.carriers and stage.ready("a"))

    assert stage.world.placed == {U0: ["a"]}
    slow.goes_on.set()
    await stage.until(lambda: stage.ready("b"))
    assert stage.world.placed == {U0: ["a", "b"]}
    assert stage.cycles("error") == stage.cycles("bug") == 0
