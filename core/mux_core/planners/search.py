"""Packing LLMs into few groups: constructive insertion, then ruin and recreate.

A step takes a few bins apart and inserts their LLMs again in another order; the result stays when
it is not worse. Steps are counted and their choices come from a generator with a fixed seed, so an
equal number of steps gives an equal plan in any process.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

from mux_core.estimator.unit import GroupKind
from mux_core.planners.capacity import Capacity
from mux_core.planners.packing import LOAD_CEILING, Bin, Item, Oracle

TRIES = 24
"""Existing bins asked per insertion, fullest first; bounds the work on large clusters."""
MAX_SPLIT = 3
LOOSE_PART = 0.6
"""How often a step also takes one of the least loaded bins apart: those are near to vanishing."""


Rooms = list[tuple[float, int]]


@dataclass(slots=True)
class Packing:
    """Bins and what is left over; a search copies and replaces it as a whole."""

    bins: list[Bin]
    unserved: dict[int, float]
    counts: dict[GroupKind, int]

    def copy(self) -> "Packing":
        return Packing(list(self.bins), dict(self.unserved), dict(self.counts))

    @property
    def gpus(self) -> int:
        return sum(kind.gpus * count for kind, count in self.counts.items())


def empty_packing() -> Packing:
    return Packing([], {}, {})


def replicas_of(packing: Packing, item: Item) -> int:
    return sum(1 for there in packing.bins if there.holds(item.index))


def missing_replicas(packing: Packing, items: Sequence[Item]) -> int:
    """Replicas that must be, beyond the first of each LLM, and are not there."""
    asking = (item for item in items if item.llm.min_replicas > 1 and item.kinds)
    return sum(max(0, item.llm.min_replicas - max(1, replicas_of(packing, item)))
               for item in asking)  # fmt: skip


@dataclass(slots=True)
class Inserter:
    """Puts items into a packing, within the capacity of the cluster."""

    oracle: Oracle
    capacity: Capacity

    def insert(self, packing: Packing, item: Item, rate: float, *, extend: bool = False) -> None:
        """Places `rate` of `item`: in bins that have room, else in new ones.

        `extend`: raise its rate where it already is before looking elsewhere.
        """
        if not item.kinds:
            packing.unserved[item.index] = packing.unserved.get(item.index, 0.0) + rate
            return
        least = max(0, item.llm.min_replicas - self._replicas(packing, item))
        least = least if item.llm.min_replicas > 1 else 0
        for _ in range(least):
            rate -= self._insert_piece(packing, item, rate / max(1, least), whole=True)
            least -= 1
        left = rate
        while extend and left > 1e-9 and (grown := self._grow(packing, item, left)) > 0:
            left -= grown
        while left > 1e-9:
            placed = self._insert_piece(packing, item, left, whole=False)
            if placed <= 0:
                break
            left -= placed
        if left > 1e-9:
            packing.unserved[item.index] = packing.unserved.get(item.index, 0.0) + left

    def _replicas(self, packing: Packing, item: Item) -> int:
        return replicas_of(packing, item)

    def _insert_piece(self, packing: Packing, item: Item, rate: float, *, whole: bool) -> float:
        """Places up to `rate`; how much it placed."""
        spare = item.llm.max_replicas - self._replicas(packing, item)
        if spare <= 0:
            return self._grow(packing, item, rate)
        full, solo = self._full_kind(packing, item, rate)
        if not whole and solo > 0 and rate > solo and spare > 1:
            return self._open_full(packing, item, rate, full, solo, spare)
        candidates = self._candidates(packing, item)
        if self._join_one(packing, item, rate, candidates):
            return rate
        rooms = self._rooms(packing, item, rate, candidates)
        return (
            (0.0 if whole else self._split(packing, item, rate, rooms[: min(MAX_SPLIT, spare)]))
            or self._open(packing, item, rate)
            or self._join_part(packing, item, rooms)
            or self._grow(packing, item, rate)
        )

    def _full_kind(
        self, packing: Packing, item: Item, rate: float
    ) -> tuple[GroupKind | None, float]:
        """The kind with most solo rate per GPU among those that still fit the cluster."""
        best: GroupKind | None = None
        most = 0.0
        for kind in item.kinds:
            per_gpu = self.oracle.solo(item, kind) / kind.gpus
            if per_gpu > most * 1.0001 and self._can_open(packing, kind):
                best, most = kind, per_gpu
        return best, most * best.gpus if best else 0.0

    def _open_full(
        self,
        packing: Packing,
        item: Item,
        rate: float,
        kind: GroupKind | None,
        solo: float,
        spare: int,
    ) -> float:
        """Replicas that fill a group alone; leaves the remainder to be placed with others."""
        placed = 0.0
        for _ in range(min(ceil(rate / solo) - 1, spare - 1)):
            if kind is None or not self._can_open(packing, kind):
                break
            self._add(packing, self.oracle.make(kind, [(item.index, solo)]))
            placed += solo
        return placed

    def _candidates(self, packing: Packing, item: Item) -> list[int]:
        """Positions of bins that may take the item, fullest first."""
        oracle = self.oracle
        found = []
        for position, there in enumerate(packing.bins):
            if there.load >= LOAD_CEILING or not oracle.may_join(there, item):
                continue
            found.append((-there.load, position))
        found.sort()
        return [position for _, position in found]

    def _join_one(
        self, packing: Packing, item: Item, rate: float, candidates: Sequence[int]
    ) -> bool:
        """Into the fullest bin that takes all of it."""
        tried = 0
        for position in candidates:
            there = packing.bins[position]
            solo = self.oracle.solo(item, there.kind)
            if solo <= 0 or there.load + rate / solo > LOAD_CEILING:
                continue
            tried += 1
            if self.oracle.takes(there, item, rate):
                packing.bins[position] = self.oracle.joined(there, item, rate)
                return True
            if tried >= TRIES:
                break
        return False

    def _rooms(self, packing: Packing, item: Item, rate: float, candidates: Sequence[int]) -> Rooms:
        """(room, position) of the emptiest bins, the largest room first."""
        rooms = []
        for position in candidates[-TRIES:]:
            room = self.oracle.room(packing.bins[position], item, rate)
            if room > 0.02 * rate:
                rooms.append((room, position))
        rooms.sort(key=lambda found: (-found[0], found[1]))
        return rooms

    def _split(self, packing: Packing, item: Item, rate: float, rooms: Rooms) -> float:
        """Over a few bins together, where that takes all of it and saves a group."""
        total = sum(room for room, _ in rooms)
        if total < rate:
            return 0.0
        # In proportion: a sliver of a rate would get a sliver of KV, too little for one sequence.
        parts = [(room * rate / total, position) for room, position in rooms]
        oracle = self.oracle
        if not all(oracle.takes(packing.bins[position], item, part) for part, position in parts):
            return 0.0
        for part, position in parts:
            packing.bins[position] = oracle.joined(packing.bins[position], item, part)
        return rate

    def _open(self, packing: Packing, item: Item, rate: float) -> float:
        """A new group: the smallest that carries the rate alone, else the one with most."""
        best: tuple[float, GroupKind] | None = None
        for kind in item.kinds:
            solo = self.oracle.solo(item, kind)
            if solo <= 0 or not self._can_open(packing, kind):
                continue
            if solo >= rate:
                best = (rate, kind)
                break
            if best is None or solo > best[0]:
                best = (solo, kind)
        if best is None:
            return 0.0
        self._add(packing, self.oracle.make(best[1], [(item.index, best[0])]))
        return best[0]

    def open_smallest(self, packing: Packing, item: Item, rate: float) -> bool:
        """A new group for the item, whatever it is said to carry there; False without room."""
        for kind in item.kinds:
            if self._can_open(packing, kind):
                self._add(packing, self.oracle.make(kind, [(item.index, rate)]))
                return True
        return False

    def _join_part(self, packing: Packing, item: Item, rooms: Rooms) -> float:
        if not rooms:
            return 0.0
        room, position = rooms[0]
        packing.bins[position] = self.oracle.joined(packing.bins[position], item, room)
        return room

    def _grow(self, packing: Packing, item: Item, rate: float) -> float:
        for position, there in enumerate(packing.bins):
            if not there.holds(item.index):
                continue
            more = self.oracle.growth(there, item, rate)
            if more > 0.005 * rate:
                packing.bins[position] = self.oracle.joined(there, item, more)
                return more
        return 0.0

    def _can_open(self, packing: Packing, kind: GroupKind) -> bool:
        counts = packing.counts
        counts[kind] = counts.get(kind, 0) + 1
        holds = self.capacity.holds(counts)
        counts[kind] -= 1
        return holds

    def _add(self, packing: Packing, there: Bin) -> None:
        packing.bins.append(there)
        packing.counts[there.kind] = packing.counts.get(there.kind, 0) + 1


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
        spread = sum(there.kind.gpus * there.load * there.load for there in packing.bins)
        return (
            round(short, 6),
            *(round(rate, 6) for rate in unserved.values()),
            float(packing.gpus),
            -round(spread, 9),
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

    def construct(self, most: int = 3, base: Packing | None = None) -> Packing:
        """The best of at most `most` insertion orders; `base` holds what may not move."""
        orders = [self._by_size, self._by_load, self._by_rate][:most]
        start = base or empty_packing()
        packings = [self.fill(start.copy(), sorted(self.items, key=order)) for order in orders]
        return min(packings, key=self._cost)

    def fill(self, packing: Packing, order: Sequence[Item]) -> Packing:
        """Inserts every item: targets first, then what is left, best rate per GPU first."""
        goal = self.goal
        held = _served(packing, {item.index for item in order})
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
        served = _served(packing, set(order))
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


def _served(packing: Packing, indices: set[int]) -> dict[int, float]:
    served: dict[int, float] = {}
    for there in packing.bins:
        for index, rate in there.members:
            if index in indices:
                served[index] = served.get(index, 0.0) + rate
    return served


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
