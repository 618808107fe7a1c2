"""The planner's question and answer; strategies implement `Planner`.

A search is a generator of improving plans over counted steps: the caller owns the clock, stops
when it likes and keeps the last plan. The same problem gives the same plans in any process.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from mux_core.llm import Llm
from mux_core.placement import GpuNode, Placement
from mux_core.units import ModelName, Percent, UnitId


class Objective(StrEnum):
    """What a plan is for."""

    GPUS = "gpus"
    ATTAINMENT = "attainment"


class PlanReason(StrEnum):
    """Why a step is proposed, or an alternative rejected, or a model not placed."""

    FITS_FREE = "FitsFree"
    SLO_GAIN = "SLOGain"
    FEWER_GPUS = "FewerGPUs"
    KEEP_IN_PLACE = "KeepInPlace"
    SHARING_NOT_BENEFICIAL = "SharingNotBeneficial"
    BANDWIDTH_CONFLICT = "BandwidthConflict"
    TENANT_ISOLATION = "TenantIsolation"
    REPAIR = "Repair"
    SPEC_CHANGED = "SpecChanged"
    IDLE = "Idle"
    NO_CAPACITY = "NoCapacity"
    DOES_NOT_FIT = "DoesNotFit"
    TENANT_CONFLICT = "TenantConflict"


class StepKind(StrEnum):
    """What a step of a plan does to the running system."""

    CREATE_UNIT = "CreateUnit"
    DELETE_UNIT = "DeleteUnit"
    START_ENGINE = "StartEngine"
    STOP_ENGINE = "StopEngine"
    MOVE_ENGINE = "MoveEngine"
    RESIZE_SHARE = "ResizeShare"
    RESIZE_KV = "ResizeKV"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningPolicy:
    """What the pool allows and how the planner is to weigh.

    `headroom`: highest predicted utilisation of a member. `step_percent`: granularity of SM
    shares. `max_tensor_members`: tensor-parallel members per unit (None: no limit). `gpu_limit`
    caps the usable GPUs. `min_gain`: relative gain below which a current placement is kept.
    `best_effort`, for plans that are carried out: the first plan only adds to what runs, and every
    LLM gets its least replicas where memory allows, whatever is predicted of them.
    """

    objective: Objective = Objective.GPUS
    allow_sharing: bool = True
    group_sizes: tuple[int, ...] = (1, 2, 4, 8)
    step_percent: Percent = Percent(10)
    headroom: float = 0.9
    max_tensor_members: int | None = None
    gpu_limit: int | None = None
    min_gain: float = 0.15
    best_effort: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementProblem:
    """Everything one placement decision may look at. `now` is in seconds of any epoch.

    `current` is what runs; its units keep their ids in the plan. Ids of new units are drawn from
    `unit_prefix` and the smallest unused index. LLMs and nodes are ordered by name. `barred`
    names LLMs that cannot join a unit as it runs (its pod lacks their volume).
    """

    now: float
    nodes: tuple[GpuNode, ...]
    llms: tuple[Llm, ...]
    policy: PlanningPolicy = field(default_factory=PlanningPolicy)
    current: Placement = field(default_factory=Placement)
    unit_prefix: str = "u"
    barred: frozenset[tuple[ModelName, UnitId]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberEstimate:
    """What one model (all its replicas) is predicted to get; rates in requests/s, times in s.

    `kv_bytes`: what its requests hold on average. `costs`: what its step times stand on
    (`mux_core.costmodel.sources`), where that was chosen.
    """

    offered: float
    served: float
    replicas: int
    ttft_mean_s: float | None = None
    ttft_p99_s: float | None = None
    tpot_mean_s: float | None = None
    tpot_p99_s: float | None = None
    attainment: float | None = None
    kv_bytes: int | None = None
    costs: str = ""

    @property
    def ratio(self) -> float:
        """Service ratio min(1, served/offered); 1 without demand."""
        return min(1.0, self.served / self.offered) if self.offered > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted outcome of a placement. `goodput` = sum of min(served, offered), requests/s."""

    goodput: float
    worst_ratio: float
    gpus_used: int
    attainment: float | None = None
    models: Mapping[ModelName, MemberEstimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """One difference between the current placement and the proposed one, with its why."""

    kind: StepKind
    reason: PlanReason
    unit: UnitId
    model: ModelName | None = None
    source: UnitId | None = None
    disruptive: bool = False
    predicted_unavailable_s: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A plan considered and not taken."""

    summary: str
    rejected_because: PlanReason
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaced:
    """Why an LLM has no (further) place; `message` names subject, value, limit and fix."""

    model: ModelName
    reason: PlanReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What no placement under the same estimator can beat."""

    gpus: int
    goodput: float
    gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Current placement -> proposed placement, with predicted gain and reasons."""

    strategy: str
    proposed: Placement
    prediction: Prediction
    steps: tuple[PlanStep, ...] = ()
    unplaced: tuple[Unplaced, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    bound: Bound | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a search ended: the plan to carry out, and a better one that disturbs what runs."""

    plan: Plan
    awaiting: Plan | None = None
    deadline_hit: bool = False


class Planner(Protocol):
    """A placement strategy; holds no state that changes its answers."""

    @property
    def name(self) -> str: ...

    def search(self, problem: PlacementProblem) -> Iterator[Plan]:
        """Plans, each better than the one before; at least one. Does not modify `problem`."""
        ...


def choose(planner: Planner, problem: PlacementProblem, *, late: Callable[[], bool]) -> Choice:
    """Takes plans until the search ends or it is `late`; the caller owns the clock."""
    last = additive = stay(problem)
    hit = False
    for plan in planner.search(problem):
        last = plan
        if not any(step.disruptive for step in plan.steps):
            additive = plan
        if hit := late():
            break
    awaiting = None if last is additive else last
    return Choice(plan=additive, awaiting=awaiting, deadline_hit=hit)


def stay(problem: PlacementProblem) -> Plan:
    """What is carried out when there is no plan: what runs now."""
    nothing = Prediction(goodput=0.0, worst_ratio=0.0, gpus_used=0)
    return Plan(strategy="stay", proposed=problem.current, prediction=nothing)


def best_plan(planner: Planner, problem: PlacementProblem, *, max_steps: int = 1_000) -> Plan:
    """The last plan of the first `max_steps` that the search yields."""
    best: Plan | None = None
    for step, plan in enumerate(planner.search(problem), start=1):
        best = plan
        if step >= max_steps:
            break
    if best is None:
        raise AssertionError(f"planner {planner.name} yielded no plan")
    return best
