"""Why a plan is as it is: what was rejected, who has no place, what held while planning."""

from collections.abc import Iterator
from itertools import combinations

from mux_core.errors import MuxError
from mux_core.estimator.unit import Ask, UnitEstimator
from mux_core.planners.baselines import SpatialReplicasPlanner
from mux_core.planners.packing import Bin, Item, Oracle
from mux_core.planners.search import Packing
from mux_core.planning import Alternative, PlacementProblem, PlanReason, Prediction, Unplaced
from mux_core.units import format_bytes

MOST_ALTERNATIVES = 8
MOST_PAIRS = 4


def alternatives(
    problem: PlacementProblem, packing: Packing, oracle: Oracle, chosen: Prediction
) -> tuple[Alternative, ...]:
    """At most eight: whole GPUs instead, and hot LLMs that do not share although they could."""
    found = [
        *_whole_gpus(problem, oracle.estimator, chosen),
        *_refused_pairs(packing, oracle),
    ]
    return tuple(found[:MOST_ALTERNATIVES])


def _whole_gpus(
    problem: PlacementProblem, estimator: UnitEstimator, chosen: Prediction
) -> Iterator[Alternative]:
    try:
        plan = next(iter(SpatialReplicasPlanner(estimator=estimator).search(problem)))
    except MuxError as error:
        yield Alternative(
            summary="whole GPUs per replica",
            rejected_because=PlanReason.NO_CAPACITY,
            message=str(error),
        )
        return
    other = plan.prediction
    if other.gpus_used < chosen.gpus_used and other.goodput > chosen.goodput * (1 - 1e-9):
        return
    fewer = other.goodput >= chosen.goodput * (1 - 1e-9)
    yield Alternative(
        summary="whole GPUs per replica",
        rejected_because=PlanReason.FEWER_GPUS if fewer else PlanReason.SLO_GAIN,
        message=f"{other.gpus_used} GPUs for {other.goodput:.2f}/s, worst ratio "
        f"{other.worst_ratio:.3f}; this plan: {chosen.gpus_used} GPUs for {chosen.goodput:.2f}/s, "
        f"{chosen.worst_ratio:.3f}",
    )


def _refused_pairs(packing: Packing, oracle: Oracle) -> Iterator[Alternative]:
    """Pairs of groups that the estimator would not merge, the least loaded first."""
    loose = sorted(range(len(packing.bins)), key=lambda i: (packing.bins[i].load, i))[:5]
    shown = 0
    for one, two in combinations(loose, 2):
        a, b = packing.bins[one], packing.bins[two]
        if a.kind != b.kind or shown >= MOST_PAIRS:
            continue
        reason, message = _why_not_together(a, b, oracle)
        if reason is None:
            continue
        shown += 1
        yield Alternative(
            summary=f"{_names(a, oracle)} together with {_names(b, oracle)}",
            rejected_because=reason,
            message=message,
        )


def _why_not_together(a: Bin, b: Bin, oracle: Oracle) -> tuple[PlanReason | None, str]:
    groups = {oracle.items[i].llm.sharing.tenant_group for i, _ in (*a.members, *b.members)}
    if len(groups) > 1:
        return PlanReason.TENANT_ISOLATION, f"tenant groups {sorted(groups)} never share"
    if a.footprint + b.footprint >= 1:
        return PlanReason.DOES_NOT_FIT, f"weights alone take {a.footprint + b.footprint:.0%}"
    asks = [Ask(llm=oracle.items[i].llm, rate=rate) for i, rate in (*a.members, *b.members)]
    if len({ask.llm.name for ask in asks}) < len(asks):
        return None, ""
    outcome = oracle.estimator.outcome(a.kind, asks)
    return outcome.refused, outcome.message


def _names(there: Bin, oracle: Oracle) -> str:
    return "+".join(oracle.items[index].name for index, _ in there.members)


def unplaced(packing: Packing, oracle: Oracle, problem: PlacementProblem) -> tuple[Unplaced, ...]:
    """Every LLM with unserved demand, with the reason."""
    placed = {index for there in packing.bins for index, _ in there.members}
    return tuple(
        _unplaced(oracle.items[index], rate, index in placed, oracle, problem)
        for index, rate in sorted(packing.unserved.items())
        if rate > 1e-9
    )


def _unplaced(
    item: Item, rate: float, partly: bool, oracle: Oracle, problem: PlacementProblem
) -> Unplaced:
    if not item.kinds:
        weights = format_bytes(item.llm.weight_bytes)
        largest = max((node.memory for node in problem.nodes), default=0)
        return Unplaced(
            model=item.llm.name,
            reason=PlanReason.DOES_NOT_FIT,
            message=f"{item.name}: weights of {weights} and its KV floor fit no allowed group "
            f"(GPUs of {format_bytes(largest)}, group sizes {problem.policy.group_sizes}, "
            f"allowedTensor {item.llm.allowed_tensor or 'any'}); use larger groups or GPUs",
        )
    what = f"{rate:.3g} of {item.rate:.3g} requests/s" if partly else "a replica"
    return Unplaced(
        model=item.llm.name,
        reason=PlanReason.NO_CAPACITY,
        message=f"{item.name}: no room for {what} within {sum(n.gpus for n in problem.nodes)} GPUs"
        f" and {item.llm.max_replicas} replicas; add GPUs, raise maxReplicas or lower the demand",
    )


def notes(problem: PlacementProblem, estimator: UnitEstimator) -> tuple[str, ...]:
    """What held while planning, for whoever reads the plan."""
    policy = problem.policy
    limit = policy.max_tensor_members
    found = [
        f"estimator {estimator.name}"
        + (f", headroom {policy.headroom:.0%}" if estimator.name == "default" else ""),
        "tensor-parallel members per unit: "
        + ("no limit" if limit is None else f"at most {limit}"),
    ]
    if policy.gpu_limit is not None:
        found.append(f"at most {policy.gpu_limit} GPUs")
    if not policy.allow_sharing:
        found.append("sharing is switched off by the pool")
    return tuple(found)
