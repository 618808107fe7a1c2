"""What people do without a planner: whole GPUs per LLM, replicas of whole GPUs, taking turns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mux_core.errors import CapacityError, SpecError
from mux_core.estimator.reference import ReferenceUnits
from mux_core.estimator.unit import Ask, GroupKind, UnitEstimator
from mux_core.llm import Llm
from mux_core.placement import Share
from mux_core.planners.assembly import Draft, place_drafts
from mux_core.planners.capacity import Capacity, capacity_of
from mux_core.planners.forecast import predict
from mux_core.planners.released import ReleasedSearch
from mux_core.planners.replay import ReplayPlanner, place_meshes, uniform_nodes
from mux_core.planning import PlacementProblem, Plan, PlanReason
from mux_core.units import Percent

WHOLE = Share(prefill=Percent(100), decode=Percent(90))
"""The SM pair of MuxServe's own whole-GPU baseline."""
GROUP_SIZES = (1, 2, 4, 8)


@dataclass(slots=True, kw_only=True)
class _Holding:
    """One LLM on `replicas` groups of one kind, whole GPUs."""

    llm: Llm
    kind: GroupKind
    per_replica: float
    replicas: int = 1

    @property
    def served(self) -> float:
        return min(self.replicas * self.per_replica, self.llm.demand.rate)

    @property
    def load(self) -> float:
        """Offered over served at full load, per GPU."""
        return self.llm.demand.rate / max(self.per_replica, 1e-9) / self.kind.gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatialPlanner:
    """One replica per LLM on its own GPUs: `spatial_gpus`, else the least degree, then doubled."""

    estimator: UnitEstimator = field(default_factory=ReferenceUnits)
    name: str = "spatial"

    def search(self, problem: PlacementProblem) -> Iterator[Plan]:
        capacity = _capacity(problem)
        holdings = [self._first(llm, capacity) for llm in problem.llms]
        _require(capacity, holdings, self.name)
        if all(llm.spatial_gpus is None for llm in problem.llms):
            self._double(capacity, holdings)
        yield _plan(self.name, problem, holdings, self.estimator)

    def _first(self, llm: Llm, capacity: Capacity) -> _Holding:
        kinds = _kinds(llm, capacity, self.estimator)
        if llm.spatial_gpus is None:
            return _holding(llm, kinds[0], self.estimator)
        for kind in kinds:
            if kind.gpus == llm.spatial_gpus:
                return _holding(llm, kind, self.estimator)
        raise SpecError(f"LLM {llm.name}: spatial_gpus {llm.spatial_gpus}; profiled sizes that "
                        f"hold it: {[kind.gpus for kind in kinds]}")  # fmt: skip

    def _double(self, capacity: Capacity, holdings: list[_Holding]) -> None:
        while True:
            order = sorted(range(len(holdings)), key=lambda i: (-holdings[i].load, i))
            for index in order:
                bigger = self._doubled(holdings[index], capacity)
                trial = [*holdings[:index], bigger, *holdings[index + 1 :]] if bigger else None
                if trial and bigger and capacity.holds(_counts(trial)):
                    holdings[index] = bigger
                    break
            else:
                return

    def _doubled(self, holding: _Holding, capacity: Capacity) -> _Holding | None:
        """Twice the GPUs, where that degree is profiled and the LLM is short of its demand."""
        if holding.served >= holding.llm.demand.rate:
            return None
        for kind in _kinds(holding.llm, capacity, self.estimator):
            if kind.gpus == 2 * holding.kind.gpus:
                return _holding(holding.llm, kind, self.estimator)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatialReplicasPlanner:
    """Whole-GPU replicas at the least degree; each next one where a GPU gains most."""

    estimator: UnitEstimator = field(default_factory=ReferenceUnits)
    name: str = "spatial-replicas"

    def search(self, problem: PlacementProblem) -> Iterator[Plan]:
        capacity = _capacity(problem)
        holdings = [
            _holding(llm, _kinds(llm, capacity, self.estimator)[0], self.estimator)
            for llm in problem.llms
        ]
        _require(capacity, holdings, self.name)
        while self._add_one(capacity, holdings):
            pass
        yield _plan(self.name, problem, holdings, self.estimator)

    def _add_one(self, capacity: Capacity, holdings: list[_Holding]) -> bool:
        best: tuple[float, _Holding] | None = None
        counts = _counts(holdings)
        for holding in holdings:
            if holding.replicas >= holding.llm.max_replicas:
                continue
            counts[holding.kind] += 1
            fits = capacity.holds(counts)
            counts[holding.kind] -= 1
            gain = self._gain(holding)
            if fits and gain > 0 and (best is None or gain > best[0]):
                best = (gain, holding)
        if best is None:
            return False
        best[1].replicas += 1
        return True

    def _gain(self, holding: _Holding) -> float:
        rate = holding.llm.demand.rate
        after = min((holding.replicas + 1) * holding.per_replica, rate)
        return rate * (after - holding.served) / holding.kind.gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalPlanner:
    """MuxServe's units, whose LLMs take turns; priced as equal shares of every GPU."""

    estimator: UnitEstimator = field(default_factory=ReferenceUnits)
    name: str = "temporal"

    def search(self, problem: PlacementProblem) -> Iterator[Plan]:
        replay = ReplayPlanner(name=self.name)
        nodes, per_node = uniform_nodes(problem.nodes, self.name)
        tenants = [replay._tenant(llm) for llm in problem.llms]
        found = ReleasedSearch(tenants, nodes=nodes, node_gpus=per_node, rules=replay.rules)
        for result in found.run():
            turns = {
                tenant.name: 100 // len(mesh.members)
                for mesh in result.meshes
                for tenant, _ in mesh.members
            }
            placement = place_meshes(problem, result, turns)
            yield Plan(
                strategy=self.name,
                proposed=placement,
                prediction=predict(problem, placement, self.estimator),
            )


def _capacity(problem: PlacementProblem) -> Capacity:
    return capacity_of(problem.nodes, GROUP_SIZES, limit=problem.policy.gpu_limit)


def _kinds(llm: Llm, capacity: Capacity, estimator: UnitEstimator) -> tuple[GroupKind, ...]:
    kinds = estimator.sizes(llm, capacity.kinds)
    if not kinds:
        raise SpecError(f"LLM {llm.name}: no GPU group of {[k.gpus for k in capacity.kinds]} GPUs "
                        "holds it; use larger GPUs or nodes")  # fmt: skip
    return kinds


def _holding(llm: Llm, kind: GroupKind, estimator: UnitEstimator) -> _Holding:
    return _Holding(llm=llm, kind=kind, per_replica=highest_rate(estimator, llm, kind))


def highest_rate(estimator: UnitEstimator, llm: Llm, kind: GroupKind) -> float:
    """The most one replica carries alone with the whole-GPU shares, by bisection."""
    low, high = 0.0, 1e4
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        ask = Ask(llm=llm, rate=middle, share=WHOLE)
        if estimator.outcome(kind, [ask]).fits:
            low = middle
        else:
            high = middle
    return low


def _counts(holdings: Sequence[_Holding]) -> dict[GroupKind, int]:
    counts: dict[GroupKind, int] = {}
    for holding in holdings:
        counts[holding.kind] = counts.get(holding.kind, 0) + holding.replicas
    return counts


def _require(capacity: Capacity, holdings: Sequence[_Holding], strategy: str) -> None:
    if not capacity.holds(_counts(holdings)):
        needed = sum(holding.kind.gpus * holding.replicas for holding in holdings)
        raise CapacityError(
            f"strategy {strategy}: one replica of each LLM takes {needed} whole GPUs, the cluster "
            f"has {capacity.limit}; add GPUs or use strategy default",
            reason=PlanReason.NO_CAPACITY,
        )


def _plan(
    name: str, problem: PlacementProblem, holdings: Sequence[_Holding], estimator: UnitEstimator
) -> Plan:
    drafts = [
        Draft(
            kind=holding.kind,
            asks=(
                Ask(
                    llm=holding.llm,
                    rate=min(holding.llm.demand.rate / holding.replicas, holding.per_replica),
                    share=WHOLE,
                ),
            ),
        )
        for holding in holdings
        for _ in range(holding.replicas)
    ]
    placement = place_drafts(problem, drafts, estimator)
    return Plan(
        strategy=name,
        proposed=placement,
        prediction=predict(problem, placement, estimator),
    )
