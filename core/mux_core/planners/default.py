"""Our placement strategy: the fewest GPUs that meet all demand; without that, the best service.

From scratch, `fresh` packs. A current placement is kept unless the gain exceeds `min_gain` and what
the moves cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import ceil, inf
from random import Random

from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.unit import Ask, UnitEstimator
from mux_core.planners.assembly import Draft, place_drafts
from mux_core.planners.attainment import (
    LEAST_SERVED,
    Spending,
    spend_spare_gpus,
    with_all_arrivals,
)
from mux_core.planners.capacity import Capacity, capacity_of
from mux_core.planners.explaining import alternatives, notes, unplaced
from mux_core.planners.forecast import predict
from mux_core.planners.fresh import Fresh
from mux_core.planners.holding import (
    breaks_rules,
    everyone_placed,
    full_units,
    held_packing,
    within_limits,
)
from mux_core.planners.inserting import Inserter, Packing, empty_packing, replicas_of
from mux_core.planners.keeping import kept_packing, pinned_packing
from mux_core.planners.moves import steps_between
from mux_core.planners.packing import Bin, Item, Oracle
from mux_core.planners.scarcity import service_of
from mux_core.planners.search import Goal, PackingSearch
from mux_core.planning import (
    Objective,
    PlacementProblem,
    Plan,
    PlanReason,
    Prediction,
    StepKind,
)
from mux_core.units import ModelName

MOVE_COST = 0.01
"""Relative gain that one disruptive step must bring beyond `min_gain`."""
REPAIR_GAIN = 0.01
"""Gain that suffices where something of the current placement could not stay anyway."""
SHARING_GAIN = 1.25
"""No group is estimated to carry more than this over one LLM alone; used to skip searches."""
MOST_REPACKED = 200
"""Items up to which a re-plan weighs a packing from scratch against the current one."""
MOST_POLICIES = 8
"""Policies whose estimates are remembered: so many pools are planned in turn without forgetting."""
SCARCE = 0.9
"""Part of the demand with a place below which objective `attainment` has more beginnings."""
DRIFT = 2.0
"""Beyond `MOST_REPACKED`, GPUs over the crude lower bound at which packing anew is tried."""


@dataclass(slots=True)
class DefaultPlanner:
    """Planner `default`. `steps` bounds the search (None: by problem size), never a clock does."""

    estimator: UnitEstimator | None = None
    steps: int | None = None
    name: str = "default"
    _memory: dict[tuple[object, ...], Oracle] = field(default_factory=dict, repr=False)

    def search(self, problem: PlacementProblem) -> Iterator[Plan]:
        """Plans, none worse than the one before, one per step; the last one is final."""
        yield from self._run(problem).plans()

    def frontier(self, problem: PlacementProblem) -> Iterator[tuple[float, Prediction]]:
        """(floor on the worst ratio, what it leads to), the highest floor first."""
        run = self._run(problem)
        for floor, packing in run.fresh().floors():
            yield floor, run.plan(packing).prediction

    def _run(self, problem: PlacementProblem) -> "_Run":
        policy = problem.policy
        relaxed = policy.objective is Objective.ATTAINMENT
        key = (policy, relaxed)
        if key not in self._memory:
            estimator = self.estimator or QueueingUnits(headroom=policy.headroom,
                                                        step=policy.step_percent)  # fmt: skip
            if relaxed and isinstance(estimator, QueueingUnits):
                estimator = replace(estimator, enforce_slo=False)
            if len(self._memory) >= MOST_POLICIES:
                self._memory.clear()
            self._memory[key] = Oracle(estimator, policy)
        oracle = self._memory[key]
        oracle.forget_items()
        return _Run.of(self, problem, oracle)


@dataclass(slots=True)
class _Run:
    """One search over one problem."""

    planner: DefaultPlanner
    problem: PlacementProblem
    oracle: Oracle
    capacity: Capacity
    items: list[Item]
    sizes: tuple[int, ...]
    held: Packing | None = None
    """What runs, with additions only; plans that are carried out begin with it."""

    @classmethod
    def of(cls, planner: DefaultPlanner, problem: PlacementProblem, oracle: Oracle) -> "_Run":
        policy = problem.policy
        running = {member.model for _, member in problem.current.members()}
        running_sizes = (unit.group.size for unit in problem.current.units)
        sizes = tuple(sorted({*policy.group_sizes, *running_sizes}))
        capacity = capacity_of(problem.nodes, sizes, limit=policy.gpu_limit)
        kinds = [kind for kind in capacity.kinds if kind.gpus in policy.group_sizes]
        for llm in sorted(problem.llms, key=lambda llm: llm.name):
            kept = policy.best_effort and llm.name in running
            if llm.max_replicas > 0 and (llm.min_replicas > 0 or llm.demand.rate > 0 or kept):
                oracle.add(llm, llm.demand.rate, kinds)
        oracle.closed = _barred(problem)
        return cls(planner, problem, oracle, capacity, oracle.items, sizes)

    def plans(self) -> Iterator[Plan]:
        """The current placement as far as it holds, then what is worth its moves."""
        packings = self._packings()
        known: tuple[int, float] | None = None
        last: tuple[Packing, Plan] | None = None
        pending: Packing | None = None
        for packing in packings:
            state = (packing.gpus, round(sum(packing.unserved.values()), 6))
            pending = packing if last is None or packing is not last[0] else None
            if last is None or state != known:
                known = state
                last, pending = (packing, self.plan(packing)), None
            # Also without news: whoever owns the clock may want to stop here.
            yield last[1]
        if pending is not None:
            last = (pending, self.plan(pending))
        if last is not None:
            yield self._explained(*last)

    def _packings(self) -> Iterator[Packing]:
        if self.problem.policy.best_effort:
            return self._adding()
        return self._from_current() if self.problem.current.units else self._best()

    def _best(self) -> Iterator[Packing]:
        if self.problem.policy.objective is Objective.ATTAINMENT:
            yield from self._attaining()
        else:
            yield from self.fresh().packings()

    def _from_current(self) -> Iterator[Packing]:
        """What runs, kept; then a fresh packing if it gains more than its moves cost."""
        kept, whole = kept_packing(within_limits(self.problem), self.oracle, self._inserter())
        yield kept
        if not self._may_gain(kept):
            return
        fresh = self._last(self._best())
        moves = self._moves(fresh)
        least = self.problem.policy.min_gain + MOVE_COST * moves
        if self._gain(kept, fresh) >= (least if whole else min(least, REPAIR_GAIN)):
            yield fresh

    def _adding(self) -> Iterator[Packing]:
        """What runs, with additions; then what is worth disturbing it."""
        self.oracle.full = full_units(self.problem)
        best = held = self.held = held_packing(self.problem, self.oracle, self._inserter())
        yield held
        self.oracle.full = frozenset()
        if self.problem.current.units:
            kept, _ = kept_packing(within_limits(self.problem), self.oracle, self._inserter())
            if breaks_rules(held, self.oracle) or self._is_worth(held, kept):
                best = kept
                yield best
        if not self._may_gain(held):
            return
        weighed = 0.0
        for fresh in self._best():
            gain = self._gain(held, fresh)
            if gain > weighed + 1e-9 and self._gain(best, fresh) > 1e-9:
                weighed = gain  # an equal gain is not weighed against its moves again
                best = fresh if self._is_worth(held, fresh) else best
            # Also without news: the clock's owner may want to stop here.
            yield best

    def _is_worth(self, held: Packing, other: Packing) -> bool:
        if not self.problem.current.units:
            return True
        gain = self._gain(held, other) - self.problem.policy.min_gain
        return gain >= 0 and gain >= MOVE_COST * self._moves(other)

    def _may_gain(self, kept: Packing) -> bool:
        """Could any placement gain enough? Cheap, so that a steady cluster plans in no time."""
        if kept.unserved:
            return True
        least = sum(
            max(item.rate / (self.oracle.solo(item, kind) or inf) * kind.gpus / SHARING_GAIN
                for kind in item.kinds[:1])
            for item in self.items if item.kinds
        )  # fmt: skip
        memory = sum(
            min(item.footprints[kind] * kind.gpus for kind in item.kinds)
            for item in self.items
            if item.kinds
        )
        lowest = max(least, memory)
        if len(self.items) > MOST_REPACKED:
            # A cluster this large is not packed anew for what one change of rate leaves behind.
            return kept.gpus > DRIFT * lowest
        return (kept.gpus - ceil(lowest)) / max(1, kept.gpus) >= self.problem.policy.min_gain

    def _gain(self, kept: Packing, fresh: Packing) -> float:
        """Relative gain: fewer GPUs for the same service, or more service."""
        had, gets = service_of(kept, self.items), service_of(fresh, self.items)
        lost = had.goodput - gets.goodput
        if lost > 1e-6:
            return -lost
        fewer = (kept.gpus - fresh.gpus) / max(1, kept.gpus) if lost > -1e-6 else 0.0
        return max(fewer, -lost, gets.worst - had.worst)

    def _moves(self, packing: Packing) -> int:
        steps = self.plan(packing).steps
        return sum(1 for s in steps if s.disruptive and s.kind is not StepKind.RESIZE_SHARE)

    def _attaining(self) -> Iterator[Packing]:
        """Best attainment on the GPUs allowed, from shared and from unshared beginnings.

        A place for every LLM comes before all attainment.
        """
        best: tuple[int, bool, float] | None = None
        alone = Oracle(self.oracle.estimator, replace(self.problem.policy, allow_sharing=False))
        for item in self.items:
            alone.add(item.llm, item.rate, self.capacity.kinds)
        shared = self._last(self.fresh().packings())
        service = service_of(shared, self.items)
        floor = LEAST_SERVED * service.worst
        spending = Spending(self._inserter(), floor)
        starts = [shared, self._unshared(alone)]
        if shared.unserved:
            starts.append(with_all_arrivals(shared, self.oracle))
        if service.goodput < SCARCE:
            # Who is served wholly matters most, and every floor of the ladder serves others so.
            rungs = (packing for _, packing in self.fresh().floors())
            starts += [r for r in rungs if service_of(r, self.items).worst >= floor]
        for start in starts:
            for found in spend_spare_gpus(start, spending):
                packing = with_all_arrivals(found, self.oracle)
                placed = sum(replicas_of(packing, item) > 0 for item in self.items)
                fair = all(spending.worst(there) >= floor for there in packing.bins)
                worth = placed, fair, spending.attained(packing)
                if best is None or worth > (best[0], best[1], best[2] + 1e-9):
                    best = worth
                    yield packing

    def _unshared(self, alone: Oracle) -> Packing:
        rates = tuple(item.rate for item in self.items)
        goal = Goal(rates=rates, priorities=tuple(0 for _ in rates), targets=rates)
        search = PackingSearch(Inserter(alone, self.capacity), self.items, goal, Random(0))
        return search.construct()

    @staticmethod
    def _last(packings: Iterator[Packing]) -> Packing:
        *_, last = packings
        return last

    def _inserter(self) -> Inserter:
        return Inserter(self.oracle, self.capacity)

    def fresh(self) -> Fresh:
        """Packings from scratch around what may not move."""
        base, pinned = self._base()
        return Fresh(
            oracle=self.oracle,
            capacity=self.capacity,
            nodes=capacity_of(self.problem.nodes, self.sizes, limit=None),
            items=self.items,
            base=base,
            pinned=pinned,
            steps=self.planner.steps,
        )

    def _base(self) -> tuple[Packing, frozenset[int]]:
        """What may not move, and the indices of those units."""
        if all(item.llm.movable for item in self.items):
            return empty_packing(), frozenset()
        packing = pinned_packing(self.problem, self.oracle)
        return packing, frozenset(there.fixed for there in packing.bins)

    def plan(self, packing: Packing) -> Plan:
        """The plan of a packing, without its explanations."""
        reason, held = self._reason(packing), packing is self.held
        if self.problem.policy.best_effort:
            packing = everyone_placed(packing, self.problem, self._inserter())
        drafts = self._drafts(packing, held=held)
        placement = place_drafts(self.problem, drafts, self.oracle.estimator)
        return Plan(
            strategy=self.planner.name,
            proposed=placement,
            prediction=predict(self.problem, placement, self.oracle.estimator),
            steps=steps_between(self.problem, placement, reason=reason),
            unplaced=unplaced(packing, self.oracle, self.problem),
            notes=notes(self.problem, self.oracle.estimator),
        )

    def _explained(self, packing: Packing, plan: Plan) -> Plan:
        if len(self.items) > MOST_REPACKED:
            return plan
        found = alternatives(self.problem, packing, self.oracle, plan.prediction)
        return replace(plan, alternatives=found)

    def _reason(self, packing: Packing) -> PlanReason:
        held = self.held
        if held is not None and packing is not held:
            if breaks_rules(held, self.oracle):
                return PlanReason.SPEC_CHANGED
            fewer = packing.gpus < held.gpus
            return PlanReason.FEWER_GPUS if fewer else PlanReason.SLO_GAIN
        kept = all(there.fixed >= 0 for there in packing.bins)
        return PlanReason.KEEP_IN_PLACE if kept else PlanReason.FEWER_GPUS

    def _drafts(self, packing: Packing, *, held: bool) -> list[Draft]:
        units = self.problem.current.units
        return [
            Draft(
                kind=there.kind,
                asks=tuple(self._ask(there, i, rate, held=held) for i, rate in there.members),
                continues=units[there.fixed].id if there.fixed >= 0 else None,
            )
            for there in packing.bins
        ]

    def _ask(self, there: Bin, index: int, rate: float, *, held: bool) -> Ask:
        """Held members keep a share that only a restart could change."""
        llm, share = self.items[index].llm, None
        if held and there.fixed >= 0 and there.kind.gpu != "cpu":
            members = self.problem.current.units[there.fixed].members
            share = next((m.share for m in members if m.model == llm.name), None)
        return Ask(llm=llm, rate=rate, share=share)


def _barred(problem: PlacementProblem) -> frozenset[tuple[ModelName, int]]:
    """What cannot join the current units, by their index."""
    positions = {unit.id: at for at, unit in enumerate(problem.current.units)}
    return frozenset((m, positions[unit]) for m, unit in problem.barred if unit in positions)
