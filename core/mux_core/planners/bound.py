"""What no placement under the same estimator and constraints can beat.

A placement is a number of units of each pattern: members and the rates they carry. The linear
program over all patterns (solved by HiGHS, patterns added as they pay) lets units be fractions and
bounds every placement: GPUs from below where demand is met, goodput from above where it is not.
Patterns are those of `relaxation`, a little more than what the estimator allows; `pricing` says by
how much any of them might still beat the program's prices, and the bound is reduced by that.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from mux_core.estimator.unit import GroupKind, UnitEstimator
from mux_core.llm import Llm
from mux_core.placement import Placement
from mux_core.planners.assembly import kind_of
from mux_core.planners.capacity import capacity_of
from mux_core.planners.fresh import tried_bins
from mux_core.planners.packing import LEAST_RATE, Oracle
from mux_core.planners.pricing import KindPricing, Pattern, Prices
from mux_core.planners.relaxation import Array
from mux_core.planners.scarcity import multiplied
from mux_core.planners.search import Inserter
from mux_core.planning import Bound, PlacementProblem, Plan

MOST_LLMS = 48
"""Beyond this many LLMs the program takes longer than the plan; memory alone bounds them."""
MET = 1e-6
LOOKS = 8
"""Rounds in which real units are sought that pay, before the first proof."""
PROOFS = 3
"""Rounds in which it is proved how little any unit pays beyond its GPUs."""
SPLITS = 2
"""Times that a proof cuts the boxes that seem to pay most."""
SMOOTHING = 0.5
"""Part of the best prices so far in those that are tried next: new ones alone swing widely."""
TOLERANCE = 0.0025
PARTS = (1.0, 0.97, 0.93, 0.87, 0.78, 0.65, 0.4)
"""Of a relaxed unit's rates, tried until the estimator allows them."""
LEAST_PART = 0.3
"""Of its GPUs; a relaxed unit credited with more than the rest would make the program unbounded."""
SEEDING = 150
"""Steps of a search whose units begin the program."""


def bound_of(plan: Plan, problem: PlacementProblem, estimator: UnitEstimator) -> Bound:
    """The bound for the objective that decides, with the plan's gap to it.

    GPUs where the plan meets all demand; else goodput at the plan's own worst ratio.
    """
    if memory_only(problem):
        return _memory_bound(plan, problem, estimator)
    try:
        return _program_bound(plan, problem, estimator)
    except ArithmeticError:
        return _memory_bound(plan, problem, estimator)


def _program_bound(plan: Plan, problem: PlacementProblem, estimator: UnitEstimator) -> Bound:
    found = plan.prediction
    offered = sum(llm.demand.rate for llm in problem.llms)
    program = _Program.of(problem, estimator)
    program.start_with(plan.proposed, problem)
    if found.goodput >= offered * (1 - MET):
        gpus = program.fewest_gpus(found.gpus_used)
        return Bound(gpus=gpus, goodput=offered, gap=found.gpus_used / max(1, gpus) - 1)
    goodput = min(offered, program.most_goodput(found.worst_ratio))
    gap = goodput / found.goodput - 1 if found.goodput > 0 else float(goodput > 0)
    return Bound(gpus=program.capacity, goodput=goodput, gap=max(0.0, gap))


def memory_only(problem: PlacementProblem) -> bool:
    """Is the problem bounded by memory alone: too large, or on CPUs, which take turns."""
    return len(problem.llms) > MOST_LLMS or any(node.gpu == "cpu" for node in problem.nodes)


def _memory_bound(plan: Plan, problem: PlacementProblem, estimator: UnitEstimator) -> Bound:
    """The crude bound of a large problem: one replica of each LLM has to fit somewhere."""
    kinds = capacity_of(problem.nodes, problem.policy.group_sizes, limit=None).kinds
    least = 0.0
    for llm in problem.llms:
        held = [estimator.footprint(llm, k) * k.gpus for k in estimator.sizes(llm, kinds)]
        least += min(held, default=0.0) * max(1, llm.min_replicas)
    gpus = max(1, ceil(least - MET))
    offered = sum(llm.demand.rate for llm in problem.llms)
    found = plan.prediction
    if found.goodput >= offered * (1 - MET):
        return Bound(gpus=gpus, goodput=offered, gap=found.gpus_used / gpus - 1)
    return Bound(gpus=gpus, goodput=offered, gap=offered / max(found.goodput, MET) - 1)


@dataclass(frozen=True, slots=True)
class _Duals:
    """Prices of the program; `gpu` is what a GPU costs."""

    rate: Array
    replica: Array
    gpu: float

    def mixed(self, other: "_Duals", part: float) -> "_Duals":
        return _Duals(
            part * self.rate + (1 - part) * other.rate,
            part * self.replica + (1 - part) * other.replica,
            part * self.gpu + (1 - part) * other.gpu,
        )


@dataclass(slots=True)
class _Program:
    """The restricted program: its patterns, and the pricing of new ones."""

    llms: Sequence[Llm]
    demand: Array
    solos: Array
    """[LLM, kind]: the highest rate alone."""
    kinds: tuple[GroupKind, ...]
    capacity: int
    oracle: Oracle
    pricings: list[KindPricing] = field(default_factory=list)
    patterns: list[Pattern] = field(default_factory=list)
    _known: set[tuple[GroupKind, float, bytes]] = field(default_factory=set)

    @classmethod
    def of(cls, problem: PlacementProblem, estimator: UnitEstimator) -> "_Program":
        policy = problem.policy
        llms = sorted(problem.llms, key=lambda llm: llm.name)
        capacity = capacity_of(problem.nodes, policy.group_sizes, limit=policy.gpu_limit)
        oracle = Oracle(estimator, policy)
        items = [oracle.add(llm, llm.demand.rate, capacity.kinds) for llm in llms]
        solos = np.array([
            [oracle.solo(item, kind) if kind in item.kinds else 0.0 for kind in capacity.kinds]
            for item in items
        ])  # fmt: skip
        demand = np.array([max(llm.demand.rate, LEAST_RATE) for llm in llms])
        program = cls(llms, demand, solos, capacity.kinds, capacity.limit, oracle)
        program.pricings = list(program._shared(policy.allow_sharing, policy.max_tensor_members,
                                                estimator))  # fmt: skip
        return program

    def _shared(
        self, sharing: bool, most_members: int | None, estimator: UnitEstimator
    ) -> Sequence[KindPricing]:
        groups = sorted({llm.sharing.tenant_group for llm in self.llms})
        found = []
        for at, kind in enumerate(self.kinds):
            alone = not sharing or (most_members == 1 and kind.gpus > 1)
            for group in () if alone else groups:
                indices = [
                    index
                    for index, llm in enumerate(self.llms)
                    if self.solos[index, at] > 0
                    and not llm.sharing.exclusive
                    and llm.sharing.tenant_group == group
                ]
                if len(indices) > 1:
                    found.append(
                        KindPricing(
                            estimator=estimator,
                            kind=kind,
                            llms=[self.llms[index] for index in indices],
                            rates=[float(self.demand[index]) for index in indices],
                            indices=indices,
                            total=len(self.llms),
                        )
                    )
        return found

    def start_with(self, placement: Placement, problem: PlacementProblem) -> None:
        """The plan's own units, every LLM alone on every kind, and units that a search tries."""
        place = {llm.name: index for index, llm in enumerate(self.llms)}
        for unit in placement.units:
            kind = kind_of(problem, unit.group)
            if kind is not None:
                found = [(place[m.model], m.rate) for m in unit.members if m.model in place]
                self._add(self._pattern(kind, found))
        for index, at in zip(*np.nonzero(self.solos), strict=True):
            rate = min(self.demand[index], self.solos[index, at])
            self._add(self._pattern(self.kinds[at], [(int(index), float(rate))]))
        capacity = capacity_of(problem.nodes, problem.policy.group_sizes, limit=None)
        roomy = Inserter(self.oracle, multiplied(capacity))
        for there in tried_bins(roomy, self.demand.tolist(), SEEDING):
            self._add(self._pattern(there.kind, there.members))

    def _pattern(self, kind: GroupKind, members: Iterable[tuple[int, float]]) -> Pattern:
        rates = np.zeros(len(self.llms))
        held = np.zeros(len(self.llms), dtype=np.bool_)
        for index, rate in members:
            rates[index], held[index] = min(rate, self.demand[index]), True
        return Pattern(kind=kind, rates=rates, members=held, gpus=float(kind.gpus))

    def _add(self, pattern: Pattern) -> bool:
        key = (pattern.kind, pattern.gpus, pattern.rates.tobytes())
        if key in self._known:
            return False
        self._known.add(key)
        self.patterns.append(pattern)
        return True

    def fewest_gpus(self, planned: int) -> int:
        """GPUs that meeting all demand takes at least."""
        asked = [float(llm.min_replicas) for llm in self.llms]
        replicas = np.maximum(self._replicas(1.0), asked)

        def solve() -> _Duals:
            return self._solve_gpus(replicas)

        def bound(duals: _Duals, price: float) -> float:
            return self._worth(duals, self.demand, replicas) / max(price, MET)

        def enough(found: float, program: float) -> bool:
            return ceil(found - MET) >= min(planned, ceil(program - MET))

        return max(1, ceil(self._best(solve, bound, enough) - MET))

    def most_goodput(self, floor: float) -> float:
        """Goodput on the usable GPUs that no placement with that worst ratio exceeds."""
        least = floor * (1 - MET) * self.demand
        replicas = self._replicas(floor * (1 - MET))

        def solve() -> _Duals:
            return self._solve_goodput(least, replicas)

        def bound(duals: _Duals, price: float) -> float:
            gain = np.maximum((1 - duals.rate) * least, (1 - duals.rate) * self.demand).sum()
            spent = price * duals.gpu * self.capacity
            return float(duals.replica @ replicas - gain - spent)

        def enough(found: float, program: float) -> bool:
            return found >= program * (1 + TOLERANCE)

        return min(-self._best(solve, bound, enough), float(self.demand.sum()))

    def _best(
        self,
        solve: Callable[[], _Duals],
        bound: Callable[[_Duals, float], float],
        enough: Callable[[float, float], bool],
    ) -> float:
        """The highest bound found: first real units that pay, then proofs of what is left."""
        for _ in range(LOOKS):
            duals = solve()
            _, patterns = self._priced(duals, splits=0)
            if not self._add_paying(patterns, duals, relaxed=False):
                break
        best, centre = -np.inf, None
        for proof in range(PROOFS):
            duals = solve()
            trial = duals if centre is None else centre.mixed(duals, SMOOTHING)
            price, patterns = self._priced(trial, splits=SPLITS + proof)
            found = bound(trial, price)
            if found > best:
                best, centre = found, trial
            if enough(best, bound(duals, 1.0)) or price <= 1 + TOLERANCE:
                break
            if not self._add_paying(patterns, trial, relaxed=False):
                self._add_paying(patterns, trial, relaxed=True)
        return float(best)

    def _add_paying(self, patterns: list[Pattern], duals: _Duals, *, relaxed: bool) -> int:
        """Adds what is worth more than its GPUs: as the estimator allows it, or `relaxed`."""
        added = 0
        for pattern in (pattern for pattern in patterns if pattern.members.any()):
            found = pattern if relaxed else self._real(pattern, duals)
            if found is None or found.gpus < LEAST_PART * found.kind.gpus:
                continue
            least = duals.gpu * (found.gpus + found.kind.gpus * TOLERANCE / 2)
            if self._pays(found, duals) > least:
                added += self._add(found)
        return added

    def _real(self, pattern: Pattern, duals: _Duals) -> Pattern | None:
        """The same members at rates that the estimator allows, the best paid ones first."""
        oracle, kind = self.oracle, pattern.kind
        indices = [int(index) for index in np.flatnonzero(pattern.members)]
        for part in PARTS:
            members = [(i, max(float(part * pattern.rates[i]), 1e-9)) for i in indices]
            if oracle.fits(kind, members):
                break
        else:
            return None
        there = oracle.make(kind, members)
        for index in sorted(indices, key=lambda i: -duals.rate[i] * self.demand[i]):
            item = oracle.items[index]
            had = there.rate_of(index) or 0.0
            more = oracle.growth(there, item, item.rate - had) if item.rate > had else 0.0
            if more > 0:
                there = oracle.joined(there, item, more)
        return self._pattern(kind, there.members)

    def _worth(self, duals: _Duals, rates: Array, replicas: Array) -> float:
        return float(duals.rate @ rates + duals.replica @ replicas)

    def _replicas(self, floor: float) -> Array:
        """Replicas that so much of each demand takes at least: whole ones, each with weights."""
        most = self.solos.max(axis=1)
        needed = np.ceil(np.divide(floor * self.demand, most, out=np.zeros_like(most),
                                   where=most > 0) - MET)  # fmt: skip
        return np.asarray(needed, dtype=float)

    def _priced(self, duals: _Duals, *, splits: int) -> tuple[float, list[Pattern]]:
        """(the most that any unit is worth, in prices of its GPUs, and units worth about that)."""
        gpu = max(duals.gpu, 1e-9)
        prices = Prices(rate=duals.rate / gpu, replica=duals.replica / gpu)
        sizes = np.array([kind.gpus for kind in self.kinds], dtype=float)
        served = np.minimum(self.solos, self.demand[:, None])
        alone = prices.replica[:, None] + prices.rate[:, None] * served
        most = float(np.where(self.solos > 0, alone / sizes, 0.0).max())
        found: list[Pattern] = []
        for pricing in self.pricings:
            gpus = pricing.kind.gpus
            value, patterns = pricing.price(prices, gpus * (1 + TOLERANCE), splits=splits)
            most = max(most, value / gpus)
            found += patterns
        return most, found

    def _pays(self, pattern: Pattern, duals: _Duals) -> float:
        return float(duals.rate @ pattern.rates + duals.replica @ pattern.members)

    def _matrices(self) -> tuple[Array, Array, Array]:
        rates = np.array([pattern.rates for pattern in self.patterns]).T
        members = np.array([pattern.members for pattern in self.patterns], dtype=float).T
        gpus = np.array([pattern.gpus for pattern in self.patterns])
        return rates, members, gpus

    def _solve_gpus(self, replicas: Array) -> _Duals:
        rates, members, gpus = self._matrices()
        limits = -np.concatenate([self.demand, replicas])
        prices = _duals(gpus, -np.vstack([rates, members]), limits)
        count = len(self.llms)
        return _Duals(prices[:count], prices[count:], 1.0)

    def _solve_goodput(self, least: Array, replicas: Array) -> _Duals:
        rates, members, gpus = self._matrices()
        count = len(self.llms)
        nothing = np.zeros((count, count))
        rows = np.vstack([
            np.hstack([-rates, np.eye(count)]),
            np.hstack([-members, nothing]),
            np.concatenate([gpus, np.zeros(count)])[None, :],
        ])  # fmt: skip
        limits = np.concatenate([np.zeros(count), -replicas, [float(self.capacity)]])
        cost = np.concatenate([np.zeros(len(gpus)), -np.ones(count)])
        bounds = [(0, None)] * len(gpus) + list(zip(least, self.demand, strict=True))
        prices = _duals(cost, rows, limits, bounds)
        return _Duals(prices[:count], prices[count : 2 * count], float(prices[-1]))


def _duals(
    cost: Array, rows: Array, limits: Array, bounds: object = (0, None)
) -> NDArray[np.float64]:
    found = linprog(cost, A_ub=rows, b_ub=limits, bounds=bounds, method="highs")
    if found.status != 0:
        raise ArithmeticError(f"HiGHS: {found.message}")
    marginals: Array = -np.asarray(found.ineqlin.marginals, dtype=float)
    return np.maximum(0.0, marginals)
