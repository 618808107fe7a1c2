"""Why a plan is as it is: what was rejected, who has no place, what held while planning."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

from mux_core.errors import MuxError
from mux_core.estimator.unit import Ask, UnitEstimator
from mux_core.footprint import kv_floor, layout_error, weight_floor
from mux_core.planners.baselines import SpatialReplicasPlanner
from mux_core.planners.inserting import Packing
from mux_core.planners.packing import Bin, Item, Oracle
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
    """Every LLM with unserved demand, with the reason; who has a place is served best effort."""
    if problem.policy.best_effort:
        counts = Counter(index for there in packing.bins for index, _ in there.members)
        short = [item for item in oracle.items if counts[item.index] < item.llm.min_replicas]
        return tuple(_without_place(packing, item, oracle, problem) for item in short)
    return tuple(
        _unserved(packing, oracle.items[index], rate, problem)
        for index, rate in sorted(packing.unserved.items())
        if rate > 1e-9
    )


def _unserved(packing: Packing, item: Item, rate: float, problem: PlacementProblem) -> Unplaced:
    if not item.kinds:
        return _too_large(item, problem)
    partly = any(there.rate_of(item.index) is not None for there in packing.bins)
    what = f"{rate:.3g} of {item.rate:.3g} requests/s" if partly else "a replica"
    return Unplaced(
        model=item.llm.name,
        reason=PlanReason.NO_CAPACITY,
        message=f"{item.name}: no room for {what} within {sum(n.gpus for n in problem.nodes)} GPUs"
        f" and {item.llm.max_replicas} replicas; add GPUs, raise maxReplicas or lower the demand",
    )


def _without_place(
    packing: Packing, item: Item, oracle: Oracle, problem: PlacementProblem
) -> Unplaced:
    """Why a replica that must be has no place: size, tenants, or what is free."""
    if not item.kinds:
        return _too_large(item, problem)
    kind = min(item.kinds, key=lambda kind: item.footprints[kind] * kind.gpus * kind.memory)
    need = item.footprints[kind] * kind.memory
    asked = f"LLM {item.name} needs {format_bytes(int(need))} on each of {_gpus(kind.gpus)}"
    alike = [there for there in packing.bins if there.kind in item.kinds]
    roomy = [there for there in alike
             if there.footprint + item.footprints[there.kind] <= 1]  # fmt: skip
    if any(_tenants(there, oracle) != {item.tenant} for there in roomy):
        return Unplaced(
            model=item.llm.name, reason=PlanReason.TENANT_CONFLICT,
            message=f"{asked}; only units of other tenant groups have room and no slot is free for "
            f"group {item.tenant!r}; add a slot")  # fmt: skip
    left = max(((1 - there.footprint) * there.kind.memory for there in alike), default=0.0)
    return Unplaced(
        model=item.llm.name, reason=PlanReason.NO_CAPACITY,
        message=f"{asked}; no slot is free and the roomiest unit has "
        f"{format_bytes(max(0, int(left)))} left; delete a model, lower a KV floor or add a "
        "slot")  # fmt: skip


def _too_large(item: Item, problem: PlacementProblem) -> Unplaced:
    """It fits no group that it may use, even alone."""
    llm, sizes = item.llm, problem.policy.group_sizes
    allowed = [size for size in sorted(llm.allowed_tensor or sizes) if size in sizes]
    if not allowed:
        message = (f"LLM {llm.name}: allowed tensor sizes {list(llm.allowed_tensor)} are not among "
                   f"the pool's group sizes {list(sizes)}; change parallelism or "
                   "groupSizes")  # fmt: skip
        return Unplaced(model=llm.name, reason=PlanReason.DOES_NOT_FIT, message=message)
    error = layout_error(llm, tensor=allowed[0])
    if error:
        message = f"LLM {llm.name}: its KV cannot be laid out: {error}"
        return Unplaced(model=llm.name, reason=PlanReason.DOES_NOT_FIT, message=message)
    held = [(weight_floor(llm, tensor=size), kv_floor(llm, tensor=size), size) for size in allowed]
    weights, floor, size = min(held, key=lambda need: (need[0] + need[1], need[2]))
    largest = max((n.memory for n in problem.nodes if n.gpus >= size), default=0)
    return Unplaced(
        model=llm.name,
        reason=PlanReason.DOES_NOT_FIT,
        message=f"LLM {llm.name} needs {format_bytes(weights + floor)} on each of {_gpus(size)} "
        f"(weights {format_bytes(weights)}, KV floor {format_bytes(floor)}); the largest slot of "
        f"the pool has {format_bytes(largest)}; use a smaller model, more GPUs per replica or "
        "larger slots",
    )


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count > 1 else ''}"


def _tenants(there: Bin, oracle: Oracle) -> set[str]:
    return {oracle.items[index].tenant for index, _ in there.members}


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
