"""Our placement strategy: the fewest GPUs that meet all demand; without that, the best service.

1. Pack the full demand into few groups (`search`). 2. Where some stays unserved, find how far every
LLM can be served at least, and trade that floor against total goodput. 3. From a current placement,
keep it unless the gain exceeds `min_gain`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from mux_core.estimator.reference import ReferenceUnits
from mux_core.estimator.unit import Ask, UnitEstimator
from mux_core.planners.assembly import Draft, place_drafts
from mux_core.planners.capacity import Capacity, capacity_of
from mux_core.planners.forecast import predict
from mux_core.planners.moves import steps_between
from mux_core.planners.packing import Item, Oracle
from mux_core.planners.search import (
    Budget,
    Goal,
    Inserter,
    Packing,
    PackingSearch,
)
from mux_core.planning import PlacementProblem, Plan, PlanReason

SEED = 20_240_402
FLOOR_PARTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Floors tried where demand exceeds the cluster, as parts of the highest floor reachable."""
FLOOR_ROUNDS = 6


@dataclass(slots=True)
class DefaultPlanner:
    """Planner `default`. `steps` and `estimates` bound the search; they do not depend on a clock."""

    estimator: UnitEstimator = field(default_factory=ReferenceUnits)
    steps: int | None = None
    name: str = "default"
    _oracles: dict[int, Oracle] = field(default_factory=dict, repr=False)

    def search(self, problem: PlacementProblem) -> Iterator[Plan]:
        """Better and better plans; the last one is final."""
        run = _Run.of(self, problem)
        yield from run.plans()


@dataclass(slots=True)
class _Run:
    """One search over one problem."""

    planner: DefaultPlanner
    problem: PlacementProblem
    oracle: Oracle
    capacity: Capacity
    items: list[Item]

    @classmethod
    def of(cls, planner: DefaultPlanner, problem: PlacementProblem) -> "_Run":
        policy = problem.policy
        oracle = Oracle(planner.estimator, policy)
        capacity = capacity_of(problem.nodes, policy.group_sizes, limit=policy.gpu_limit)
        for llm in sorted(problem.llms, key=lambda llm: llm.name):
            if llm.max_replicas > 0 and (llm.min_replicas > 0 or llm.demand.rate > 0):
                oracle.add(llm, llm.demand.rate, capacity.kinds)
        return cls(planner, problem, oracle, capacity, oracle.items)

    def plans(self) -> Iterator[Plan]:
        known: tuple[int, float] | None = None
        for packing in self._fresh():
            state = (packing.gpus, round(sum(packing.unserved.values()), 6))
            if state != known:
                known = state
                yield self._plan(packing)

    def _fresh(self) -> Iterator[Packing]:
        search = self._searching(1.0)
        best = search.construct()
        yield best
        for best in search.improve(best, self._budget(), frozenset()):
            yield best
        if any(rate > 1e-9 for rate in best.unserved.values()):
            yield from self._overloaded(best)

    def _overloaded(self, best: Packing) -> Iterator[Packing]:
        """Goodput against the worst ratio: several floors, the best product of the two wins."""
        reach = self._highest_floor()
        most = self._worth(best)
        for part in FLOOR_PARTS:
            search = self._searching(reach * part)
            packing = search.construct()
            for packing in search.improve(packing, self._budget(3), frozenset()):
                pass
            if self._worth(packing) > most:
                most, best = self._worth(packing), packing
            yield best

    def _highest_floor(self) -> float:
        """The largest part of every demand that fits, by bisection over constructed packings."""
        low, high = 0.0, 1.0
        for _ in range(FLOOR_ROUNDS):
            middle = (low + high) / 2
            search = self._searching(1.0, scale=middle)
            packing = search.construct()
            for packing in search.improve(packing, self._budget(6), frozenset()):
                if not packing.unserved:
                    break
            if packing.unserved:
                high = middle
            else:
                low = middle
        return low

    def _worth(self, packing: Packing) -> float:
        offered = sum(item.rate for item in self.items)
        served = offered - sum(packing.unserved.values())
        worst = min((1 - rate / self.items[i].rate for i, rate in packing.unserved.items()),
                    default=1.0)  # fmt: skip
        return served / offered * worst

    def _searching(self, floor: float, scale: float = 1.0) -> PackingSearch:
        goal = Goal(
            rates=tuple(item.rate * scale for item in self.items),
            priorities=tuple(item.llm.priority for item in self.items),
            floor=floor,
        )
        inserter = Inserter(self.oracle, self.capacity)
        return PackingSearch(inserter, self.items, goal, Random(SEED))

    def _budget(self, divisor: int = 1) -> Budget:
        steps = self.planner.steps
        if steps is None:
            steps = 60 + 2 * len(self.items)
        return Budget(steps // divisor, 3000 // divisor)

    def _plan(self, packing: Packing) -> Plan:
        drafts = [
            Draft(
                kind=there.kind,
                asks=tuple(Ask(llm=self.items[i].llm, rate=rate) for i, rate in there.members),
            )
            for there in packing.bins
        ]
        placement = place_drafts(self.problem, drafts, self.planner.estimator)
        return Plan(
            strategy=self.planner.name,
            proposed=placement,
            prediction=predict(self.problem, placement, self.planner.estimator),
            steps=steps_between(self.problem.current, placement, reason=PlanReason.FEWER_GPUS),
        )
