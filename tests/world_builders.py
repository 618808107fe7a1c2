"""A small world in which time passes: objects, what actions do to them, and its cluster door.

An inspect run ends, a started unit runs and a stopped one is gone when `pass_time` is called, so
tests can look at the moments between. `MemoryCluster` is the same world behind the door.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from mux_core.actions import (
    Action,
    ApplyUnit,
    EndInspection,
    EnsureService,
    ForgetUnit,
    InspectModel,
    LabelUnit,
    PublishRoutes,
    RecordPlan,
    StartUnit,
    StopUnit,
    WriteUnit,
)
from mux_core.decide import decide
from mux_core.llm import Demand, Dtype, ModelGeometry
from mux_core.placement import GpuNode
from mux_core.planners.default import DefaultPlanner
from mux_core.planning import Choice, PlacementProblem, choose
from mux_core.pool_verdicts import Outcome
from mux_core.problem import question
from mux_core.routes import RouteTable
from mux_core.snapshot import (
    Carrier,
    CarrierState,
    GatewayAddress,
    Inspection,
    LlmObject,
    MemberReport,
    Observation,
    PlanRecord,
    PoolObject,
    Snapshot,
    UnitAddress,
    UnitRecord,
    UnitReport,
)
from mux_core.specs import LlmSpec, ModelSource, PoolKey, PoolSpec, Scheme
from mux_core.status import Condition, LlmStatus, MeasuredDemand, Resolved, StatusReport
from mux_core.units import GIB, MIB, Bytes, ModelName, NodeName, UnitId
from mux_core.unitspec import Device
from mux_core.unread import with_unread
from mux_core.verdicts import statuses

KEY = PoolKey(namespace="models", name="pool")
NOW = 1_000_000.0


PLANNER = DefaultPlanner(steps=12)
"""One for all: what it remembers changes no answer. Few steps: worlds are small and many."""


def chosen(problem: PlacementProblem) -> Choice:
    return choose(PLANNER, problem, late=lambda: False)


def shape(**changes: Any) -> ModelGeometry:
    """A tiny transformer."""
    values: dict[str, Any] = {
        "architecture": "LlamaForCausalLM", "layers": 2, "hidden": 64, "intermediate": 128,
        "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 256, "max_model_len": 512,
        "dtype": Dtype.FLOAT32,
    }  # fmt: skip
    return ModelGeometry(**{**values, **changes})


def a_pool(**spec: Any) -> PoolObject:
    values: dict[str, Any] = {"device": Device.CPU, "group_sizes": (1,)}
    return PoolObject(key=KEY, uid="pool-uid", generation=1, spec=PoolSpec(**{**values, **spec}))


def an_llm(name: str, *, claim: str = "models", created: float = 0.0, **spec: Any) -> LlmObject:
    source = ModelSource(scheme=Scheme.PVC, location=f"{claim}/{name}")
    values: dict[str, Any] = {"pool": KEY.name, "source": source, "served_name": name}
    return LlmObject(
        name=ModelName(name), uid=f"{name}-uid", generation=1, created_at=created,
        spec=LlmSpec(**{**values, **spec}), path=f"/models/{claim}/{name}",
    )  # fmt: skip


def poisson(draw: random.Random, mean: float) -> int:
    """Arrivals in a second."""
    count, left = 0, draw.expovariate(mean)
    while left < 1.0:
        count, left = count + 1, left + draw.expovariate(mean)
    return count


def declared(rate: float) -> Demand:
    return Demand(rate=rate, prompt_tokens=100, output_tokens=100)


def slots(count: int, memory: int = 2 * GIB, node: str = "node-0") -> GpuNode:
    return GpuNode(name=NodeName(node), gpus=count, memory=Bytes(memory))


@dataclass
class World:
    """What is. `weights` in bytes, `shapes` and `broken` (reason, message): of checkpoints."""

    pool: PoolObject | None = field(default_factory=a_pool)
    llms: dict[str, LlmObject] = field(default_factory=dict)
    nodes: tuple[GpuNode, ...] = (slots(1),)
    lost: frozenset[NodeName] = frozenset()
    weights: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, ModelGeometry] = field(default_factory=dict)
    broken: dict[str, tuple[str, str]] = field(default_factory=dict)
    records: dict[str, UnitRecord] = field(default_factory=dict)
    carriers: dict[tuple[str, int], Carrier] = field(default_factory=dict)
    inspections: dict[str, Inspection] = field(default_factory=dict)
    gateways: tuple[GatewayAddress, ...] = (GatewayAddress(name="gw", host="10.0.1.1"),)
    routes: RouteTable | None = None
    plans: tuple[PlanRecord, ...] = ()
    services: frozenset[tuple[ModelName, int]] = frozenset()
    reports: dict[UnitId, UnitReport] = field(default_factory=dict)
    demand: dict[ModelName, MeasuredDemand] = field(default_factory=dict)
    has_table: dict[str, int] = field(default_factory=dict)
    not_before: dict[UnitId, float] = field(default_factory=dict)
    refused: dict[UnitId, str] = field(default_factory=dict)
    told: StatusReport = field(default_factory=StatusReport)
    known: tuple[str, Choice] | None = None
    """The last answer of the planner and the question it answers."""
    address: Callable[[str], UnitAddress] = lambda unit: UnitAddress(host="10.0.0.1")
    now: float = NOW

    def add(self, *items: LlmObject) -> None:
        self.llms |= {item.name: item for item in items}

    def edit(self, name: str, **spec: Any) -> None:
        item = self.llms[name]
        assert item.spec is not None
        self.llms[name] = replace(item, generation=item.generation + 1,
                                  spec=replace(item.spec, **spec))  # fmt: skip

    def observation(self, *, order: random.Random | None = None) -> Observation:
        """What the door sees; in any order when one is given."""

        def listed(items: Iterable[Any]) -> tuple[Any, ...]:
            found = list(items)
            if order is not None:
                order.shuffle(found)
            return tuple(found)

        return Observation(
            now=self.now, key=KEY, pool=self.pool, llms=listed(self.llms.values()),
            nodes=listed(self.nodes), lost=self.lost, units=listed(self.records.values()),
            carriers=listed(self.carriers.values()),
            inspections=listed(self.inspections.values()), gateways=listed(self.gateways),
            routes=self.routes, plans=listed(self.plans), services=self.services,
            first_port=10000, url="http://gateway",
        )  # fmt: skip

    def snapshot(self, *, order: random.Random | None = None) -> Snapshot:
        return Snapshot(
            seen=with_unread(self.observation(order=order)), reports=dict(self.reports),
            demand=dict(self.demand), has_table=dict(self.has_table),
            not_before=dict(self.not_before), refused=dict(self.refused),
        )  # fmt: skip

    def decided(self, *, order: random.Random | None = None) -> tuple[Action, ...]:
        snapshot = self.snapshot(order=order)
        asked = question(snapshot)
        return decide(snapshot, asked, chosen(asked.problem))

    def cycle(self) -> tuple[Action, ...]:
        """One look: decide, do, and say how it is."""
        snapshot = self.snapshot()
        asked = question(snapshot)
        if self.known is None or self.known[0] != asked.inputs_hash:
            self.known = (asked.inputs_hash, chosen(asked.problem))
        choice = self.known[1]
        actions = decide(snapshot, asked, choice)
        for action in actions:
            self.do(action)
        after = replace(snapshot, has_table=dict(self.has_table))
        self.report(statuses(Outcome(snapshot=after, asked=asked, choice=choice)))
        return actions

    def settle(self, *, looks: int = 20) -> list[Action]:
        """Cycles while time passes until nothing is left to do; every action on the way."""
        taken: list[Action] = []
        quiet = 0
        for _ in range(looks):
            actions = self.cycle()
            taken += actions
            quiet = 0 if actions else quiet + 1
            if quiet == 2:
                return taken
            self.pass_time()
        raise AssertionError(f"still acting after {looks} looks: {actions}")

    def pass_time(self) -> None:
        self.now += 1.0
        for name, run in self.inspections.items():
            self.inspections[name] = replace(run, result=self.checkpoint(name))
        for key, carrier in list(self.carriers.items()):
            if carrier.state is CarrierState.STOPPING:
                del self.carriers[key]
                self.reports.pop(carrier.unit, None)
            elif carrier.state is CarrierState.PENDING:
                self.carriers[key] = replace(carrier, state=CarrierState.RUNNING, node="node-0",
                                             address=self.address(carrier.unit))  # fmt: skip
                self.say(carrier.unit)

    def say(self, unit: str, **members: str) -> None:
        """The unit serves what its record asks; `members` names those in another state."""
        spec = self.records[unit].spec
        self.reports[UnitId(unit)] = UnitReport(
            unit=UnitId(unit), start_id=f"{unit}-{spec.incarnation}", at=self.now,
            generation=spec.generation, applied_generation=spec.generation,
            members={ModelName(m.model): MemberReport(
                model=ModelName(m.model), served_name=m.served_name,
                state=members.get(m.model, "Serving")) for m in spec.members},
        )  # fmt: skip

    def checkpoint(self, name: str) -> Resolved:
        spec = self.llms[name].spec
        assert spec is not None
        if name in self.broken:
            reason, message = self.broken[name]
            return Resolved(source=spec.source.key, error_reason=reason, message=message)
        weight = Bytes(self.weights.get(name, 256 * MIB))
        geometry = self.shapes.get(name) or shape()
        return Resolved(source=spec.source.key, geometry=geometry, weight_bytes=weight)

    def report(self, told: StatusReport) -> None:
        self.told = told
        for name, status in told.llms.items():
            if name in self.llms:
                self.llms[name] = replace(self.llms[name], status=status)
        if self.pool is not None and told.pool is not None:
            self.pool = replace(self.pool, status=told.pool)

    def status(self, name: str) -> LlmStatus:
        return self.told.llms[ModelName(name)]

    def condition(self, name: str, kind: str) -> Condition:
        found = self.status(name).condition(kind)
        assert found is not None
        return found

    def said(self, name: str, kind: str) -> tuple[str, str]:
        """(status, reason) of one condition."""
        found = self.condition(name, kind)
        return str(found.status), str(found.reason)

    def said_of_pool(self, kind: str) -> tuple[str, str]:
        found = self.told.pool.condition(kind) if self.told.pool is not None else None
        assert found is not None
        return str(found.status), str(found.reason)

    @property
    def placed(self) -> dict[str, list[str]]:
        return {u: [m.model for m in r.spec.members] for u, r in sorted(self.records.items())}

    @property
    def serving(self) -> list[str]:
        """Served names that have an endpoint."""
        return [r.served_name for r in self.routes.routes if r.serving] if self.routes else []

    def do(self, action: Action) -> None:
        match action:
            case InspectModel(model=model):
                run = Inspection(model=model, source=action.source.key)
                self.inspections.setdefault(model, run)
            case EndInspection(model=model):
                self.inspections.pop(model, None)
            case WriteUnit(record=record):
                self.records[record.unit] = record
            case StartUnit():
                self._start(action)
            case StopUnit(unit=unit, incarnation=incarnation):
                self._stop(unit, incarnation)
            case ForgetUnit(unit=unit):
                self.records.pop(unit, None)
            case LabelUnit():
                key = (action.unit, action.incarnation)
                self.carriers[key] = replace(self.carriers[key], serving=action.serving,
                                             draining=action.draining)  # fmt: skip
            case EnsureService(model=model, port=port):
                self.services |= {(model, port)}
            case PublishRoutes(table=table):
                self.routes = table
                self.has_table = {gateway.name: table.generation for gateway in self.gateways}
            case RecordPlan():
                kept = tuple(p for p in self.plans if p.name not in action.expired)
                plan = PlanRecord(revision=action.revision, inputs_hash=action.inputs_hash,
                                  name=action.name, waits=action.waits)  # fmt: skip
                self.plans = (*kept, plan)
            case ApplyUnit(unit=unit):
                self.say(unit)

    def _start(self, action: StartUnit) -> None:
        unit, incarnation = action.record.unit, action.record.spec.incarnation
        self.carriers.setdefault((unit, incarnation), Carrier(
            unit=unit, incarnation=incarnation, name=f"{unit}-{incarnation}",
            state=CarrierState.PENDING, claims=action.claims))  # fmt: skip

    def _stop(self, unit: str, incarnation: int) -> None:
        carrier = self.carriers.get((unit, incarnation))
        if carrier is None:
            return
        if carrier.state is CarrierState.DEAD:
            del self.carriers[unit, incarnation]
            return
        self.carriers[unit, incarnation] = replace(carrier, state=CarrierState.STOPPING)

    def die(self, unit: str) -> None:
        """The pod fails for good, by itself."""
        incarnation = self.records[unit].spec.incarnation
        carrier = self.carriers[unit, incarnation]
        self.carriers[unit, incarnation] = replace(carrier, state=CarrierState.DEAD, address=None)
        self.reports.pop(UnitId(unit), None)

    def vanish(self, unit: str) -> None:
        """The pod is deleted by somebody and gone."""
        del self.carriers[unit, self.records[unit].spec.incarnation]
        self.reports.pop(UnitId(unit), None)


def a_world(*llms: LlmObject, **world: Any) -> World:
    result = World(**world)
    result.add(*llms)
    return result


def settled(*llms: LlmObject, **world: Any) -> World:
    """A world that has come to rest."""
    result = a_world(*llms, **world)
    result.settle()
    return result


def kinds(actions: Iterable[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


class MemoryCluster:
    """`mux_operator.door.Cluster` over a World; `outages` are raised by the next calls in turn."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.taken: list[Action] = []
        self.outages: list[Exception] = []
        self.refuses: dict[type, Exception] = {}
        self.observed = 0
        self.looked = asyncio.Event()
        self.mark: Callable[[PoolKey], None] = lambda key: None

    def pools(self) -> tuple[PoolKey, ...]:
        return (KEY,)

    async def observe(self, key: PoolKey) -> Observation:
        self.observed += 1
        self.looked.set()
        self._fail()
        return self.world.observation()

    async def apply(self, key: PoolKey, action: Action) -> None:
        self._fail()
        if type(action) in self.refuses:
            raise self.refuses[type(action)]
        self.taken.append(action)
        self.world.do(action)

    async def report(self, key: PoolKey, report: StatusReport) -> None:
        self._fail()
        self.world.report(report)

    def on_change(self, mark: Callable[[PoolKey], None]) -> None:
        self.mark = mark

    def _fail(self) -> None:
        if self.outages:
            raise self.outages.pop(0)
