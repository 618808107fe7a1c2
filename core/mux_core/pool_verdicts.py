"""The status of a pool, and what it shares with the statuses of its LLMs; pure.

`Outcome` is what both look at: a cycle as it ended.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mux_core.carriers import live_carrier
from mux_core.placement import GpuNode
from mux_core.planning import Choice, Plan
from mux_core.problem import Question
from mux_core.reasons import ConditionType, Reason, condition, settled, with_ready
from mux_core.snapshot import Carrier, Snapshot, UnitRecord
from mux_core.specs import Mode
from mux_core.status import Condition, PoolStatus, PoolUnitStatus, Truth
from mux_core.units import ModelName, UnitId

_C, _R = ConditionType, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A cycle as it ended: what was asked and answered, and whether the planner failed.

    `planning`: the planner still works, what runs is kept meanwhile.
    """

    snapshot: Snapshot
    asked: Question
    choice: Choice
    planner_error: str = ""
    planning: bool = False

    @property
    def plan(self) -> Plan:
        """What is carried out."""
        return self.choice.plan


def pool_status(outcome: Outcome, wanted: Mapping[UnitId, UnitRecord]) -> PoolStatus | None:
    seen = outcome.snapshot.seen
    if seen.pool is None:
        return None
    used = {(r.group.node, gpu) for r in wanted.values() for gpu in r.group.gpus}
    gpus = sum(node.gpus for node in seen.nodes)
    conditions = with_ready((_inventory(outcome), _plan_current(outcome), _moves(outcome)))
    active = max(seen.plans, key=lambda p: p.revision).name if seen.plans else ""
    return PoolStatus(
        observed_generation=seen.pool.generation, gpus=gpus, free_gpus=max(0, gpus - len(used)),
        inventory={node.name: node.gpus for node in seen.nodes},
        units=tuple(_unit_status(outcome.snapshot, r) for _, r in sorted(wanted.items())),
        active_plan=active,
        conditions=settled(conditions, seen.pool.status.conditions,
                           generation=seen.pool.generation, now=seen.now),
    )  # fmt: skip


def _unit_status(snapshot: Snapshot, record: UnitRecord) -> PoolUnitStatus:
    carrier: Carrier | None = live_carrier(snapshot.seen, record.unit)
    return PoolUnitStatus(
        unit=record.unit, node=record.group.node, gpus=record.group.gpus,
        models=tuple(ModelName(member.model) for member in record.spec.members),
        state=carrier.state if carrier is not None else "Pending",
        pod=carrier.name if carrier is not None else "",
    )  # fmt: skip


def _inventory(outcome: Outcome) -> Condition:
    seen = outcome.snapshot.seen
    if seen.pool is not None and seen.pool.spec_error:
        return no(_C.INVENTORY_READY, _R.INVALID_SPEC, seen.pool.spec_error, permanent=True)
    if not seen.nodes:
        return no(_C.INVENTORY_READY, _R.NO_MATCHING_NODES, "no node matches nodeSelector and "
                   "offers gpu.resourceName; label nodes or set gpu.static")  # fmt: skip
    return yes(_C.INVENTORY_READY, _R.DISCOVERED, _inventory_words(seen.nodes))


def _inventory_words(nodes: Iterable[GpuNode]) -> str:
    counted = [node.gpus for node in nodes]
    return f"{sum(counted)} slots on {len(counted)} nodes"


def _plan_current(outcome: Outcome) -> Condition:
    if outcome.planner_error:
        return no(_C.PLAN_CURRENT, _R.PLANNER_ERROR, outcome.planner_error)
    if outcome.plan.unplaced:
        first = outcome.plan.unplaced[0]
        return no(_C.PLAN_CURRENT, _R.INFEASIBLE, first.message)
    if outcome.planning:
        return condition(_C.PLAN_CURRENT, Truth.UNKNOWN, _R.PLANNING)
    if outcome.plan.steps:
        return no(_C.PLAN_CURRENT, _R.APPLYING)
    if outcome.choice.awaiting is not None:
        return no(_C.PLAN_CURRENT, _R.AWAITING_APPROVAL, waiting(outcome.choice.awaiting))
    return yes(_C.PLAN_CURRENT, _R.UP_TO_DATE)


def _moves(outcome: Outcome) -> Condition:
    pool = outcome.snapshot.seen.pool
    if pool is not None and pool.spec.mode is Mode.EXECUTE:
        return yes(_C.MOVES_ALLOWED, _R.OPEN)
    return no(_C.MOVES_ALLOWED, _R.RECOMMEND_ONLY)


def waiting(plan: Plan) -> str:
    """What a plan would change that is not done without being asked for."""
    first = next(step for step in plan.steps if step.disruptive)
    count = sum(1 for step in plan.steps if step.disruptive)
    return (f"{count} disruptive step{'s' if count > 1 else ''} wait, the first is {first.kind} "
            f"{first.model or first.unit} because {first.reason}: "
            f"{plan.prediction.gpus_used} GPUs and {plan.prediction.goodput:.3g} requests/s would "
            "result; this release carries out additive steps alone")  # fmt: skip


def yes(kind: ConditionType, reason: Reason, message: str = "") -> Condition:
    return condition(kind, Truth.TRUE, reason, message)


def no(
    kind: ConditionType, reason: Reason, message: str = "", *, permanent: bool = False
) -> Condition:
    return condition(kind, Truth.FALSE, reason, message, permanent=permanent)
