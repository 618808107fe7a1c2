"""Our placement strategy: the fewest GPUs that meet all demand; without that, the best service.

1. Pack the full demand into few groups (`search`). 2. Where some stays unserved, find how far every
LLM can be served at least, and trade that floor against total goodput. 3. From a current placement,
keep it unless the gain exceeds `min_gain`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import ceil
from random import Random

from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.unit import Ask, UnitEstimator
from mux_core.planners.assembly import Draft, place_drafts
from mux_core.planners.attainment import met_rate, spend_spare_gpus
from mux_core.planners.capacity import Capacity, capacity_of
from mux_core.planners.explaining import alternatives, notes, unplaced
from mux_core.planners.forecast import predict
from mux_core.planners.holding import (
    breaks_rules,
    closed_units,
    everyone_placed,
    held_packing,
)
from mux_core.planners.keeping import kept_packing, pinned_packing
from mux_core.planners.moves import steps_between
from mux_core.planners.packing import Bin, Item, Oracle
from mux_core.planners.search import (
    Budget,
    Goal,
    Inserter,
    Packing,
    PackingSearch,
    empty_packing,
)
from mux_core.planners.whole_groups import whole_group_packing
from mux_core.planning import (
    Objective,
    PlacementProblem,
    Plan,
    PlanReason,
    Prediction,
    StepKind,
)
from mux_core.units import ModelName

SEED = 20_240_402
FLOOR_PARTS = (1.0, 0.9, 0.8, 0.65)
"""Floors tried where demand exceeds the cluster, as parts of the highest floor reachable."""
FLOOR_ROUNDS = 5
MOVE_COST = 0.01
"""Relative gain that one disruptive step must bring beyond `min_gain`."""
REPAIR_GAIN = 0.01
"""Gain that suffices where something of the current placement could not stay anyway."""
SHARING_GAIN = 1.25
"""No group is estimated to carry more than this over one LLM alone; used to skip searches."""
MOST_REPACKED = 200
"""Items up to which a re-plan weighs a packing from scratch against the current one."""
DRIFT = 2.0
"""Beyond `MOST_REPACKED`, GPUs over the crude lower bound at which packing anew is tried."""
HOPELESS = 0.05
"""Part of demand unserved after the first packings beyond which no search will serve it all."""


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
        for floor, packing in run.floors():
            yield floor, run.plan(packing).prediction

    def _run(self, problem: PlacementProblem) -> "_Run":
        policy = problem.policy
        relaxed = policy.objective is Objective.ATTAINMENT
        key = (policy, relaxed)
        if key not in self._memory:
            estimator = self.estimator or QueueingUnits(headroom=policy.headroom)
            if relaxed and isinstance(estimator, QueueingUnits):
                estimator = replace(estimator, enforce_slo=False)
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
    reach: float = 1.0
    guard: tuple[float, float] | None = None
    held: Packing | None = None
    """What runs, with additions only; plans that are carried out begin with it."""
    searches: int = 0
    """Searches begun; each draws from a generator of its own."""

    @classmethod
    def of(cls, planner: DefaultPlanner, problem: PlacementProblem, oracle: Oracle) -> "_Run":
        policy = problem.policy
        running = {member.model for _, member in problem.current.members()}
        sizes = {*policy.group_sizes, *(unit.group.size for unit in problem.current.units)}
        capacity = capacity_of(problem.nodes, sorted(sizes), limit=policy.gpu_limit)
        kinds = [kind for kind in capacity.kinds if kind.gpus in policy.group_sizes]
        for llm in sorted(problem.llms, key=lambda llm: llm.name):
            kept = policy.best_effort and llm.name in running
            if llm.max_replicas > 0 and (llm.min_replicas > 0 or llm.demand.rate > 0 or kept):
                oracle.add(llm, llm.demand.rate, kinds)
        oracle.closed = _barred(problem)
        return cls(planner, problem, oracle, capacity, oracle.items)

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
            yield from self._fresh()

    def _from_current(self) -> Iterator[Packing]:
        """What runs, kept; then a fresh packing if it gains more than its moves cost."""
        kept, whole = kept_packing(self.problem, self.oracle, self._inserter())
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
        self.oracle.closed = closed_units(self.problem)
        best = held = self.held = held_packing(self.problem, self.oracle, self._inserter())
        yield held
        self.oracle.closed = _barred(self.problem)
        if self.problem.current.units:
            kept, _ = kept_packing(self.problem, self.oracle, self._inserter())
            if breaks_rules(held, self.oracle) or self._is_worth(held, kept):
                best = kept
                yield best
        if not self._may_gain(held):
            return
        for fresh in self._best():
            if self._gain(best, fresh) > 1e-9 and self._is_worth(held, fresh):
                best = fresh
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
            max(item.rate / self.oracle.solo(item, kind) * kind.gpus / SHARING_GAIN
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
        lost = self._short(fresh) - self._short(kept)
        if lost > 1e-6:
            return -lost
        fewer = (kept.gpus - fresh.gpus) / max(1, kept.gpus) if lost > -1e-6 else 0.0
        return max(fewer, -lost, self._worst(fresh) - self._worst(kept))

    def _moves(self, packing: Packing) -> int:
        steps = self.plan(packing).steps
        return sum(1 for s in steps if s.disruptive and s.kind is not StepKind.RESIZE_SHARE)

    def _attaining(self) -> Iterator[Packing]:
        """Best attainment on the GPUs allowed, from shared and from unshared beginnings."""
        best: Packing | None = None
        alone = Oracle(self.oracle.estimator, replace(self.problem.policy, allow_sharing=False))
        for item in self.items:
            alone.add(item.llm, item.rate, self.capacity.kinds)
        starts = [self._last(self._fresh()), self._unshared(alone)]
        for start in starts:
            for packing in spend_spare_gpus(start, self._inserter()):
                if best is None or self._attained(packing) > self._attained(best) + 1e-9:
                    best = packing
                    yield best

    def _unshared(self, alone: Oracle) -> Packing:
        goal = self._searching(1.0).goal
        search = PackingSearch(Inserter(alone, self.capacity), self.items, goal, Random(SEED))
        return search.construct()

    def _attained(self, packing: Packing) -> float:
        inserter = self._inserter()
        return sum(met_rate(there, inserter) for there in packing.bins)

    @staticmethod
    def _last(packings: Iterator[Packing]) -> Packing:
        *_, last = packings
        return last

    def _inserter(self) -> Inserter:
        return Inserter(self.oracle, self.capacity)

    def _base(self) -> tuple[Packing, frozenset[int]]:
        """What may not move, and the indices of those units."""
        if all(item.llm.movable for item in self.items):
            return empty_packing(), frozenset()
        packing = pinned_packing(self.problem, self.oracle)
        return packing, frozenset(there.fixed for there in packing.bins)

    def _fresh(self) -> Iterator[Packing]:
        search = self._searching(1.0)
        base, pinned = self._base()
        best = search.construct(3 if len(self.items) <= MOST_REPACKED else 1, base)
        yield best
        if self._short(best) <= HOPELESS:
            for better in search.improve(best, self._budget(), pinned):
                best = better
                yield best
        if best.unserved and self._short(best) > 0:
            yield from self._overloaded()

    def _short(self, packing: Packing) -> float:
        """Part of all demand that is unserved."""
        return sum(packing.unserved.values()) / (sum(item.rate for item in self.items) or 1.0)

    def _overloaded(self) -> Iterator[Packing]:
        """Goodput against the worst ratio: several floors, the best trade of the two wins.

        Whole groups per replica are a candidate too; what beats them in both figures goes first.
        """
        whole = self._whole_groups()
        self.guard = None if whole is None else (self._short(whole), self._worst(whole))
        starts = sorted(self._starts(whole), key=lambda start: -self._worth(start[1]))
        best = starts[0][1]
        yield best
        for number, start in enumerate(starts):
            # The best trade first; another start only where that ends behind whole groups.
            if number and (self._rank(best)[0] or not self._rank(start[1])[0]):
                continue
            for better in self._polished(*start):
                if self._rank(better) > self._rank(best):
                    best = better
                    yield best

    def _polished(self, floor: float, packing: Packing) -> Iterator[Packing]:
        yield packing
        search = self._searching(floor, reach=max(floor, self.reach))
        yield from search.improve(packing, self._overload_budget(), self._base()[1])

    def _starts(self, whole: Packing | None) -> Iterator[tuple[float, Packing]]:
        yield from self.floors()
        if whole is not None:
            floor = self._worst(whole)
            search = self._searching(floor, reach=max(floor, self.reach))
            best = whole
            for better in search.improve(best, self._budget(4), frozenset()):
                best = better
            yield floor, best

    def _whole_groups(self) -> Packing | None:
        """The plan without sharing, where nothing speaks against it."""
        held = any(item.llm.priority or not item.llm.movable or item.llm.min_replicas > 1
                   for item in self.items)  # fmt: skip
        return None if held else whole_group_packing(self._inserter(), self.items)

    def _rank(self, packing: Packing) -> tuple[bool, float]:
        if self.guard is None:
            return True, self._worth(packing)
        lost, worst = self.guard
        ahead = self._short(packing) <= lost + 1e-9 and self._worst(packing) >= worst - 1e-9
        return ahead, self._worth(packing)

    def floors(self) -> Iterator[tuple[float, Packing]]:
        """A packing for each of several floors on the worst ratio, the highest first."""
        self.reach = reach = self._highest_floor()
        for part in FLOOR_PARTS:
            search = self._searching(reach * part, reach=reach)
            base, pinned = self._base()
            best = search.construct(1, base)
            for better in search.improve(best, self._budget(8), pinned):
                best = better
            yield reach * part, best

    def _highest_floor(self) -> float:
        """The largest part of every demand that fits, by bisection over constructed packings."""
        low, high = 0.0, 1.0
        for _ in range(FLOOR_ROUNDS):
            middle = (low + high) / 2
            packing = self._searching(middle, scale=middle).construct(1, self._base()[0])
            if packing.unserved:
                high = middle
            else:
                low = middle
        return low

    def _worth(self, packing: Packing) -> float:
        """Goodput counts twice: a floor near its limit costs much goodput for little fairness."""
        return (1 - self._short(packing)) ** 2 * self._worst(packing)

    def _worst(self, packing: Packing) -> float:
        ratios = (1 - rate / self.items[i].rate for i, rate in packing.unserved.items())
        return max(0.0, min(ratios, default=1.0))

    def _searching(self, floor: float, *, scale: float = 1.0, reach: float = 0.0) -> PackingSearch:
        """A search for `scale` of the demand; with `reach`, towards targets above the floor."""
        rates = tuple(item.rate * scale for item in self.items)
        inserter = self._inserter()
        goal = Goal(
            rates=rates,
            priorities=tuple(item.llm.priority for item in self.items),
            targets=rates,
            floor=floor,
        )
        self.searches += 1
        search = PackingSearch(inserter, self.items, goal, Random(SEED + self.searches))
        if reach:
            search.goal = replace(goal, targets=self._targets(search, floor, reach))
        return search

    def _targets(self, search: PackingSearch, floor: float, reach: float) -> tuple[float, ...]:
        """What each LLM should get: the floor, then full demand by priority and rate per GPU.

        The cluster is taken to hold as much work as when everyone got `reach` of its demand.
        """
        cost = [1 / (search.per_gpu(item) or 1e-9) for item in self.items]
        spare = sum((reach - floor) * item.rate * cost[item.index] for item in self.items)
        targets = [floor * item.rate for item in self.items]
        order = sorted(self.items, key=lambda i: (-i.llm.priority, cost[i.index], i.index))
        for item in order:
            more = min((1 - floor) * item.rate, spare / cost[item.index])
            targets[item.index] += more
            spare -= more * cost[item.index]
        return tuple(targets)

    def _budget(self, divisor: int = 1) -> Budget:
        steps = self.planner.steps
        if steps is None:
            steps = 60 + 2 * min(len(self.items), MOST_REPACKED)
        return Budget(steps // divisor, (3000 + 8 * len(self.items)) // divisor)

    def _overload_budget(self) -> Budget:
        """Many steps, but no more estimates: with full groups most steps ask little."""
        usual = self._budget()
        return Budget(4 * usual.steps, usual.estimates // 2)

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
