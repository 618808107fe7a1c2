"""Packing LLMs into few groups: constructive insertion, then ruin and recreate.

A step takes a few bins apart and inserts their LLMs again in another order; the result stays when
it is not worse. Steps are counted and their choices come from a generator with a fixed seed, so an
equal number of steps gives an equal plan in any process.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from mux_core.planners.inserting import Inserter, Packing, empty_packing, missing_replicas
from mux_core.planners.packing import Item

LOOSE_PART = 0.6
"""How often a step also takes one of the least loaded bins apart: those are near to vanishing."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What makes one packing better: floors first, then demand by priority, then fewer GPUs.

    `targets` are inserted before anything beyond them, so that what pays most finds room first.
    """

    rates: tuple[float, ...]
    priorities: tuple[int, ...]
    targets: tuple[float, ...]
    floor: float = 1.0

    def cost(self, packing: Packing) -> tuple[float, ...]:
        """Smaller is better."""
        short = 0.0
        unserved = dict.fromkeys(sorted(set(self.priorities), reverse=True), 0.0)
        for index, rate in packing.unserved.items():
            short += max(0.0, rate / self.rates[index] - (1 - self.floor))
            unserved[self.priorities[index]] += rate
        return (
            round(short, 6),
            *(round(rate, 6) for rate in unserved.values()),
            float(packing.gpus),
            -round(packing.spread, 9),
        )


@dataclass(slots=True)
class Budget:
    """Counted work: ruin-and-recreate steps and estimates."""

    steps: int
    estimates: int


@dataclass(slots=True)
class PackingSearch:
    """One search: the best packing so far, improved step by step."""

    inserter: Inserter
    items: Sequence[Item]
    goal: Goal
    random: Random

    @classmethod
    def for_demand(
        cls, inserter: Inserter, items: Sequence[Item], seed: int, *, scale: float = 1.0
    ) -> "PackingSearch":
        """For all demand, or that part of it."""
        rates = tuple(item.rate * scale for item in items)
        priorities = tuple(item.llm.priority for item in items)
        goal = Goal(rates=rates, priorities=priorities, targets=rates)
        return cls(inserter, items, goal, Random(seed))

    def construct(self, most: int = 3, base: Packing | None = None) -> Packing:
        """The best of at most `most` insertion orders; `base` holds what may not move."""
        orders = [self._by_size, self._by_load, self._by_rate][:most]
        start = base or empty_packing()
        packings = [self.fill(start.copy(), sorted(self.items, key=order)) for order in orders]
        return min(packings, key=self._cost)

    def fill(self, packing: Packing, order: Sequence[Item]) -> Packing:
        """Inserts every item: targets first, then what is left, best rate per GPU first."""
        goal = self.goal
        held = packing.rates()
        rest = {}
        for item in order:
            served = held.get(item.index, 0.0)
            first = max(0.0, goal.targets[item.index] - served)
            if first > 0:
                self.inserter.insert(packing, item, first, extend=served > 0)
            beyond = goal.rates[item.index] - max(goal.targets[item.index], served)
            if beyond > 1e-9:
                rest[item.index] = beyond
        self.fill_rest(packing, rest)
        return packing

    def improve(self, best: Packing, budget: Budget, pinned: frozenset[int]) -> Iterator[Packing]:
        """Yields after every step: the best so far. `pinned` units are never taken apart."""
        cost = self._cost(best)
        oracle = self.inserter.oracle
        end = oracle.asked + budget.estimates
        for step in range(budget.steps):
            if oracle.asked >= end or not best.bins:
                return
            candidate = self.attempt(best, pinned, step)
            found = self._cost(candidate)
            if found <= cost:
                best, cost = candidate, found
            yield best

    def _cost(self, packing: Packing) -> tuple[float, ...]:
        return (float(missing_replicas(packing, self.items)), *self.goal.cost(packing))

    def attempt(self, packing: Packing, pinned: frozenset[int], step: int) -> Packing:
        """Another packing, with a few bins taken apart and their LLMs placed again."""
        chosen = choose_ruin(packing, self.random, 3)
        free = {at for at in chosen if packing.bins[at].fixed not in pinned}
        return self.without(packing, free, shuffled=step % 2 == 1)

    def without(self, packing: Packing, positions: set[int], *, shuffled: bool = False) -> Packing:
        """Another packing, with these bins taken apart and their LLMs placed again."""
        packing = packing.copy()
        freed = ruin(packing, positions)
        if shuffled:
            order = sorted(freed)
            self.random.shuffle(order)
        else:
            noise = {index: self.random.uniform(0.6, 1.4) for index in sorted(freed)}
            order = sorted(
                freed,
                key=lambda i: (
                    self._by_size(self.items[i])[:2],
                    -noise[i] * freed[i] / self._solo(self.items[i]),
                ),
            )
        self._recreate(packing, freed, order)
        return packing

    def _recreate(self, packing: Packing, freed: dict[int, float], order: Sequence[int]) -> None:
        served = packing.rates()
        rest = {}
        for index in order:
            short = self.goal.targets[index] - served.get(index, 0.0)
            first = min(freed[index], max(0.0, short))
            if freed[index] - first < 1e-6 * freed[index]:
                first = freed[index]
            if first > 0:
                self.inserter.insert(packing, self.items[index], first)
            if freed[index] > first:
                rest[index] = freed[index] - first
        self.fill_rest(packing, rest)

    def fill_rest(self, packing: Packing, rest: dict[int, float]) -> None:
        """Demand above the floor, by priority, where a GPU serves most of it first."""
        order = sorted(
            rest, key=lambda i: (-self.items[i].llm.priority, -self.per_gpu(self.items[i]), i)
        )
        for index in order:
            if rest[index] > 1e-9:
                # What had no room so far joins the rest: it is tried once, not twice.
                left = rest[index] + packing.unserved.pop(index, 0.0)
                self.inserter.insert(packing, self.items[index], left, extend=True)

    def per_gpu(self, item: Item) -> float:
        return max(
            (self.inserter.oracle.solo(item, kind) / kind.gpus for kind in item.kinds), default=0.0
        )

    def _solo(self, item: Item) -> float:
        solo = self.inserter.oracle.solo(item, item.kinds[0]) if item.kinds else 0.0
        return solo or 1e-9

    def _by_size(self, item: Item) -> tuple[float, ...]:
        size = item.kinds[0].gpus if item.kinds else 0
        return (-item.llm.priority, -size, -item.rate / self._solo(item), item.index)

    def _by_load(self, item: Item) -> tuple[float, ...]:
        return (-item.llm.priority, -item.rate / self._solo(item), item.index)

    def _by_rate(self, item: Item) -> tuple[float, ...]:
        size = item.kinds[0].gpus if item.kinds else 0
        return (-item.llm.priority, -size * item.rate / self._solo(item), item.index)


def ruin(packing: Packing, positions: set[int]) -> dict[int, float]:
    """Takes bins out of the packing; the rates they carried, by item."""
    freed: dict[int, float] = {}
    for position in sorted(positions, reverse=True):
        there = packing.bins.pop(position)
        packing.counts[there.kind] -= 1
        for index, rate in there.members:
            freed[index] = freed.get(index, 0.0) + rate
    for index, rate in packing.unserved.items():
        freed[index] = freed.get(index, 0.0) + rate
    packing.unserved.clear()
    return freed


def choose_ruin(packing: Packing, random: Random, most: int) -> set[int]:
    """The least loaded bin more often than others, and some at random beside it."""
    count = len(packing.bins)
    some = random.randint(1, most)
    chosen = {random.randrange(count) for _ in range(some)}
    if random.random() < LOOSE_PART:
        loose = sorted(range(count), key=lambda i: (packing.bins[i].load, i))
        chosen.add(loose[int(random.random() ** 2 * min(count, 8))])
    return chosen
