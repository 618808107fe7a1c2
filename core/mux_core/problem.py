"""From a snapshot to the planner's question, and the names it contests.

Who may be planned: an LLMDeployment of this pool whose spec and source can be read, whose geometry
is known, and who holds its served name. One that runs keeps running on what it was last resolved
to, whatever its manifest says meanwhile: a bad edit must not take a serving model down.
"""

import hashlib
from dataclasses import dataclass, field, replace
from math import floor, log10
from typing import Final

from mux_core.carriers import out_of_reach
from mux_core.llm import Demand, Dtype, Llm, ModelGeometry
from mux_core.placement import GpuNode, KvQuota, Member, Placement, Share, Unit
from mux_core.planning import PlacementProblem, PlanningPolicy
from mux_core.rates import TAU_S, at_once, fell, risen, window
from mux_core.reasons import ConditionType, Reason
from mux_core.snapshot import LlmObject, Observation, Snapshot, UnitRecord
from mux_core.specs import PoolSpec
from mux_core.status import MeasuredDemand, Resolved
from mux_core.units import Bytes, ModelName, Percent
from mux_core.unitspec import Device, MemberSpec

INSPECT_AGAIN_S: Final = 60.0
"""An inspect run that itself failed (evicted, out of memory) is repeated so much later."""
UNPLANNED: Final = 0.01
"""A planned rate below this is none: its model was placed before anything was known of it."""


def running_members(seen: Observation) -> dict[ModelName, list[tuple[UnitRecord, MemberSpec]]]:
    """Members by model, as the unit records have them."""
    found: dict[ModelName, list[tuple[UnitRecord, MemberSpec]]] = {}
    for record in seen.units:
        for member in record.spec.members:
            found.setdefault(ModelName(member.model), []).append((record, member))
    return found


def name_losers(seen: Observation) -> dict[ModelName, ModelName]:
    """LLMs whose served name another holds -> its holder: who runs with it, else the older."""
    return _contest(seen)[1]


def served_names(seen: Observation) -> dict[ModelName, str]:
    """The name of every LLM that has one; who loses a new name keeps the one it runs with."""
    return {model: name for name, model in _contest(seen)[0].items()}


def _contest(seen: Observation) -> tuple[dict[str, ModelName], dict[ModelName, ModelName]]:
    """Holders by name, and losers with who holds what they ask for."""
    running = _running_names(seen)

    def rank(item: LlmObject) -> tuple[bool, bool, float, str]:
        now, asked = running.get(item.name), item.spec.served_name if item.spec else ""
        return (now != asked, now is None, item.created_at, item.name)

    holders: dict[str, ModelName] = {}
    losers: dict[ModelName, ModelName] = {}
    for item in sorted((x for x in seen.llms if x.spec is not None), key=rank):
        assert item.spec is not None
        holder = holders.setdefault(item.spec.served_name, item.name)
        if holder != item.name:
            losers[item.name] = holder
            if item.name in running:
                holders.setdefault(running[item.name], item.name)
    return holders, losers


def _running_names(seen: Observation) -> dict[ModelName, str]:
    """By the published routes, which every pool of the namespace sees, and our units' records."""
    published = seen.routes.routes if seen.routes is not None else ()
    names = {ModelName(route.model): route.served_name for route in published if route.serving}
    for model, places in running_members(seen).items():
        names[model] = places[0][1].served_name
    return names


def resolution(item: LlmObject, seen: Observation) -> Resolved | None:
    """What is known of the source asked for now; None until an inspect run has ended.

    A failure counts for the manifest it was found with: an edit makes another attempt, and so
    does time where the run itself failed.
    """
    if item.spec is None:
        return None
    key = item.spec.source.key
    for inspection in seen.inspections:
        if inspection.model == item.name and inspection.source == key and inspection.result:
            return inspection.result
    known = item.status.resolved
    if known is None or known.source != key:
        return None
    edited = item.status.observed_generation != item.generation
    again = edited or _inspected_in_vain(item, known, seen.now)
    return None if known.error_reason and again else known


def _inspected_in_vain(item: LlmObject, known: Resolved, now: float) -> bool:
    said = item.status.condition(ConditionType.MODEL_RESOLVED)
    failed = known.error_reason == Reason.INSPECTION_FAILED
    return failed and said is not None and now - said.since > INSPECT_AGAIN_S


def usable(item: LlmObject, seen: Observation) -> Resolved | None:
    """The resolution to plan with: of the source asked for, else of the one still running."""
    current = resolution(item, seen)
    if current is not None and not current.error_reason:
        return current
    if not running_members(seen).get(item.name):
        return None
    known = item.status.resolved
    if known is not None and not known.error_reason:
        return known
    return item.status.previous


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The planner's problem, and its hash: the same inputs need no second plan."""

    problem: PlacementProblem
    inputs_hash: str
    usable: dict[ModelName, Resolved] = field(default_factory=dict)


def question(snapshot: Snapshot) -> Question:
    """What to ask the planner about this pool now."""
    seen = snapshot.seen
    pool = seen.pool
    spec = pool.spec if pool is not None and not pool.spec_error else None
    named = served_names(seen)
    known: dict[ModelName, Resolved] = {}
    llms = []
    for item in seen.members if spec is not None else ():
        resolved = usable(item, seen)
        if resolved is None or resolved.geometry is None or item.name not in named:
            continue
        known[item.name] = resolved
        llms.append(_llm(item, resolved, snapshot, device=spec.device if spec else Device.CPU))
    inputs = PlacementProblem(
        now=snapshot.now,
        nodes=usable_nodes(seen),
        llms=tuple(sorted(llms, key=lambda llm: llm.name)),
        policy=_policy(spec) if spec is not None else PlanningPolicy(),
        current=current_placement(seen, frozenset(known)),
        barred=out_of_reach(seen),
    )
    inputs_hash = _hash(inputs, snapshot.profiles)
    prefix = f"{seen.key.name}-r{_revision(seen, inputs_hash)}-u"
    return Question(problem=replace(inputs, unit_prefix=prefix), inputs_hash=inputs_hash,
                    usable=known)  # fmt: skip


def next_revision(seen: Observation) -> int:
    return max((plan.revision for plan in seen.plans), default=0) + 1


def _revision(seen: Observation, inputs_hash: str) -> int:
    """Of the plan that answers these inputs: units are named after it, whoever carries it on."""
    newest = max(seen.plans, key=lambda plan: plan.revision, default=None)
    if newest is not None and newest.inputs_hash == inputs_hash:
        return newest.revision
    return next_revision(seen)


def usable_nodes(seen: Observation) -> tuple[GpuNode, ...]:
    """The inventory, with no more memory than running units were started with.

    An arena does not grow while it is used: more memory per slot counts for units to come, and
    on a node only once its units of before are gone.
    """
    started: dict[str, int] = {}
    for record in seen.units:
        node = record.group.node
        started[node] = min(record.spec.memory_bytes, started.get(node, record.spec.memory_bytes))
    limited = (replace(node, memory=Bytes(min(node.memory, started.get(node.name, node.memory))))
               for node in seen.nodes)  # fmt: skip
    return tuple(sorted(limited, key=lambda node: node.name))


def current_placement(seen: Observation, planned: frozenset[ModelName]) -> Placement:
    """What the records say, without models that are gone and units whose GPUs are gone."""
    gpus = {node.name: node.gpus for node in seen.nodes}
    units = []
    for record in seen.units:
        if max(record.group.gpus) >= gpus.get(record.group.node, 0):
            continue
        members = tuple(planned_member(m) for m in record.spec.members if m.model in planned)
        unit = Unit(id=record.unit, group=record.group, members=())
        if members:
            units.append(unit.with_members(members))
    return Placement(units=tuple(sorted(units, key=lambda unit: unit.id)))


def resized(geometry: ModelGeometry, dtype: str, max_model_len: int | None) -> ModelGeometry:
    """The geometry as the spec asks to run it."""
    changed = geometry if dtype == "Auto" else replace(geometry, dtype=Dtype(dtype))
    if max_model_len is None:
        return changed
    return replace(changed, max_model_len=min(max_model_len, geometry.max_model_len))


def planned_rate(measured: MeasuredDemand | None, declared: float, before: float) -> float:
    """The rate to plan with: never below the declared one, and what was planned before unless it
    really changed. The first rate of a model counts as soon as it is worth a time constant.
    """
    if measured is None:
        return max(declared, before)
    first = before < UNPLANNED and window(measured.age_s, TAU_S) >= TAU_S
    new = risen(measured, before)
    if new is None and (first or fell(measured, before)):
        # The larger of both: else what lasts, or waits, would count as a rise at the next look.
        new = max(at_once(measured), measured.lasting)
    return max(declared, before if new is None else _two_digits(new))


def known_demand(item: LlmObject, snapshot: Snapshot) -> MeasuredDemand | None:
    """What is measured; before anything is, what was last written: a restart forgets no rate."""
    return snapshot.demand.get(item.name) or item.status.demand


def _two_digits(value: float) -> float:
    if value < 0.01:
        return 0.0
    return round(value, 1 - floor(log10(value)))


def _llm(item: LlmObject, resolved: Resolved, snapshot: Snapshot, *, device: Device) -> Llm:
    spec = item.spec
    assert spec is not None
    assert resolved.geometry is not None
    geometry = resized(resolved.geometry, spec.dtype, spec.max_model_len)
    weights = resolved.weight_bytes * geometry.dtype.itemsize // resolved.geometry.dtype.itemsize
    return Llm(
        name=item.name, weight_bytes=Bytes(weights), geometry=geometry,
        demand=_demand(item, snapshot), slo=spec.slo, sharing=spec.sharing,
        allowed_tensor=_tensor(spec.allowed_tensor, device), priority=spec.priority,
        min_replicas=spec.min_replicas, max_replicas=spec.max_replicas, movable=spec.movable,
    )  # fmt: skip


def _tensor(allowed: tuple[int, ...], device: Device) -> tuple[int, ...]:
    """One rank per replica on a CPU: its engine splits nothing."""
    return allowed or ((1,) if device is Device.CPU else ())


def _demand(item: LlmObject, snapshot: Snapshot) -> Demand:
    assert item.spec is not None
    declared = item.spec.declared or Demand(rate=0.0)
    measured = snapshot.demand.get(item.name)
    members = running_members(snapshot.seen).get(item.name, ())
    before = sum(member.rate for _, member in members)
    if not members and item.status.demand is not None:
        before = _two_digits(item.status.demand.rate)
    return replace(declared, rate=planned_rate(measured, declared.rate, before))


def _policy(spec: PoolSpec) -> PlanningPolicy:
    return PlanningPolicy(
        allow_sharing=spec.allow_sharing,
        group_sizes=spec.group_sizes,
        step_percent=spec.share_step_percent,
        gpu_limit=spec.gpu_limit,
        max_tensor_members=spec.max_tensor_members,
        min_gain=spec.min_gain_percent / 100,
        best_effort=True,
    )


def planned_member(member: MemberSpec) -> Member:
    """A member of a unit document as the planner's value: percents, and bytes over all GPUs."""
    return Member(
        model=ModelName(member.model), replica=member.replica, tensor=member.tensor,
        share=Share(prefill=Percent(member.prefill_percent),
                    decode=Percent(member.decode_percent)),
        kv=KvQuota(guaranteed=Bytes(member.kv_guaranteed_bytes * member.tensor),
                   limit=Bytes(member.kv_limit_bytes * member.tensor)),
        rate=member.rate, concurrency=member.concurrency,
    )  # fmt: skip


def _hash(problem: PlacementProblem, profiles: str) -> str:
    """Of everything but the time and the names of units to come."""
    fixed = replace(problem, now=0.0, unit_prefix="", barred=frozenset())
    barred = sorted(problem.barred)  # a set prints differently in every process
    text = f"{fixed!r} {barred!r}{profiles}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
