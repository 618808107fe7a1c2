"""A small world for decisions: observations that follow the actions taken on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mux_core.actions import (
    Action,
    ApplyUnit,
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
from mux_core.llm import Dtype, ModelGeometry, SharingPolicy
from mux_core.placement import GpuNode
from mux_core.planning import Choice
from mux_core.pool_verdicts import Outcome
from mux_core.problem import Question, question
from mux_core.snapshot import (
    Carrier,
    CarrierState,
    Inspection,
    LlmObject,
    MemberReport,
    Observation,
    PlanRecord,
    PoolObject,
    Snapshot,
    UnitAddress,
    UnitReport,
)
from mux_core.specs import LlmSpec, ModelSource, PoolKey, PoolSpec, Scheme
from mux_core.status import LlmStatus, Resolved, StatusReport
from mux_core.units import MIB, Bytes, ModelName, NodeName, UnitId
from mux_core.unitspec import Device
from mux_core.verdicts import statuses
from world_builders import chosen

KEY = PoolKey(namespace="ns", name="default")
GEOMETRY = ModelGeometry(
    architecture="LlamaForCausalLM", layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2,
    head_dim=32, vocab=1000, max_model_len=512, dtype=Dtype.FLOAT32,
)  # fmt: skip


def llm(
    name: str, *, claim: str = "models", sharing: SharingPolicy | None = None,
    served_name: str = "", created_at: float = 0.0, replicas: int = 1,
) -> LlmObject:  # fmt: skip
    """An LLMDeployment on a claim, not resolved yet."""
    source = ModelSource(scheme=Scheme.PVC, location=f"{claim}/{name}")
    spec = LlmSpec(pool=KEY.name, source=source, served_name=served_name or name,
                   min_replicas=replicas, max_replicas=replicas,
                   sharing=sharing or SharingPolicy())  # fmt: skip
    return LlmObject(name=ModelName(name), uid=f"uid-{name}", generation=1, spec=spec,
                     path=f"/models/{claim}/{name}", created_at=created_at)  # fmt: skip


def resolved(item: LlmObject, *, weights: int = 8 * MIB) -> Resolved:
    assert item.spec is not None
    return Resolved(source=item.spec.source.key, geometry=GEOMETRY, weight_bytes=Bytes(weights))


@dataclass(slots=True)
class World:
    """What a cluster would do with the actions, at once and without failing."""

    llms: dict[str, LlmObject] = field(default_factory=dict)
    slots: int = 1
    memory: int = 64 * MIB
    seen: Observation = field(init=False)
    reports: dict[UnitId, UnitReport] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)
    log: list[Action] = field(default_factory=list)
    not_before: dict[UnitId, float] = field(default_factory=dict)
    errors: dict[str, Resolved] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pool = PoolObject(key=KEY, uid="uid-pool", generation=1, spec=PoolSpec(device=Device.CPU))
        node = GpuNode(name=NodeName("node-0"), gpus=self.slots, memory=Bytes(self.memory))
        self.seen = Observation(now=1000.0, key=KEY, pool=pool, nodes=(node,), first_port=10000)

    def add(self, *items: LlmObject) -> None:
        self.llms |= {item.name: item for item in items}

    def snapshot(self) -> Snapshot:
        llms = tuple(item for _, item in sorted(self.llms.items()))
        self.seen = replace(self.seen, llms=llms)
        return Snapshot(seen=self.seen, reports=self.reports, not_before=self.not_before)

    def plan(self) -> tuple[Snapshot, Question, Choice]:
        snapshot = self.snapshot()
        asked = question(snapshot)
        return snapshot, asked, chosen(asked.problem)

    def look(self) -> tuple[Action, ...]:
        """One cycle: decides, performs, reports."""
        snapshot, asked, choice = self.plan()
        actions = decide(snapshot, asked, choice)
        for action in actions:
            self.perform(action)
        self.log += actions
        report = statuses(Outcome(snapshot=self.snapshot(), asked=asked, choice=choice))
        for name, status in report.llms.items():
            self.llms[name] = replace(self.llms[name], status=status)
        return actions

    def settle(self, *, most: int = 10) -> tuple[Action, ...]:
        """Looks until there is nothing to do; everything that was done."""
        done: list[Action] = []
        for _ in range(most):
            actions = self.look()
            if not actions:
                return tuple(done)
            done += actions
        raise AssertionError(f"not settled after {most} looks: {actions}")

    def status(self, name: str) -> LlmStatus:
        return self.llms[name].status

    def report(self) -> StatusReport:
        snapshot, asked, choice = self.plan()
        return statuses(Outcome(snapshot=snapshot, asked=asked, choice=choice))

    def perform(self, action: Action) -> None:
        match action:
            case InspectModel():
                result = self.errors.get(action.model) or resolved(
                    self.llms[action.model], weights=self.weights.get(action.model, 8 * MIB)
                )
                run = Inspection(model=action.model, source=action.source.key, result=result)
                self.seen = replace(self.seen, inspections=(*self.seen.inspections, run))
            case WriteUnit():
                others = [r for r in self.seen.units if r.unit != action.record.unit]
                self.seen = replace(self.seen, units=(*others, action.record))
            case StartUnit():
                self._start(action)
            case StopUnit():
                left = tuple(
                    c
                    for c in self.seen.carriers
                    if (c.unit, c.incarnation) != (action.unit, action.incarnation)
                )
                self.seen = replace(self.seen, carriers=left)
                self.reports.pop(action.unit, None)
            case ForgetUnit():
                left_units = tuple(r for r in self.seen.units if r.unit != action.unit)
                self.seen = replace(self.seen, units=left_units)
            case ApplyUnit():
                self._serve(action.unit)
            case LabelUnit():
                carriers = tuple(
                    replace(c, serving=action.serving, draining=action.draining)
                    if c.unit == action.unit
                    else c
                    for c in self.seen.carriers
                )
                self.seen = replace(self.seen, carriers=carriers)
            case EnsureService():
                services = self.seen.services | {(action.model, action.port)}
                self.seen = replace(self.seen, services=services)
            case PublishRoutes():
                self.seen = replace(self.seen, routes=action.table)
            case RecordPlan():
                made = PlanRecord(
                    revision=action.revision, inputs_hash=action.inputs_hash, name=action.name
                )
                kept = [p for p in self.seen.plans if p.name not in action.expired]
                self.seen = replace(self.seen, plans=(*kept, made))
            case _:
                runs = tuple(r for r in self.seen.inspections if r.model != action.model)
                self.seen = replace(self.seen, inspections=runs)  # fmt: skip

    def kill(self, unit: UnitId) -> None:
        """The carrier dies by itself."""
        carriers = tuple(replace(c, state=CarrierState.DEAD) if c.unit == unit else c
                         for c in self.seen.carriers)  # fmt: skip
        self.seen = replace(self.seen, carriers=carriers)
        self.reports.pop(unit, None)

    def _start(self, action: StartUnit) -> None:
        spec = action.record.spec
        made = Carrier(unit=action.record.unit, incarnation=spec.incarnation,
                       name=f"{action.record.unit}-{spec.incarnation}",
                       state=CarrierState.RUNNING, address=UnitAddress(host="10.0.0.1"),
                       claims=action.claims)  # fmt: skip
        self.seen = replace(self.seen, carriers=(*self.seen.carriers, made))
        self._serve(action.record.unit)

    def _serve(self, unit: UnitId) -> None:
        record = next(r for r in self.seen.units if r.unit == unit)
        members = {
            ModelName(m.model): MemberReport(model=ModelName(m.model), served_name=m.served_name,
                                             state="Serving")
            for m in record.spec.members
        }  # fmt: skip
        self.reports[unit] = UnitReport(
            unit=unit, start_id="a", at=self.seen.now, generation=record.spec.generation,
            members=members)  # fmt: skip
