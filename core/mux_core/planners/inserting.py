"""Inserting LLMs into a packing: in bins that have room, divided over some, or in new bins."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from mux_core.estimator.unit import GroupKind
from mux_core.planners.capacity import Capacity
from mux_core.planners.packing import LOAD_CEILING, Bin, Item, Oracle

TRIES = 24
"""Existing bins asked per insertion, fullest first; bounds the work on large clusters."""
MAX_SPLIT = 3
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

    @property
    def spread(self) -> float:
        """The more, the further apart the groups' loads are."""
        return sum(there.kind.gpus * there.load * there.load for there in self.bins)

    def rates(self) -> dict[int, float]:
        """What every item that has a place is sent, over all its replicas."""
        found: dict[int, float] = {}
        for there in self.bins:
            for index, rate in there.members:
                found[index] = found.get(index, 0.0) + rate
        return found


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
        least = max(0, item.llm.min_replicas - replicas_of(packing, item))
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

    def _insert_piece(self, packing: Packing, item: Item, rate: float, *, whole: bool) -> float:
        """Places up to `rate`; how much it placed."""
        spare = item.llm.max_replicas - replicas_of(packing, item)
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
            or self.open(packing, item, rate)
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

    def open(self, packing: Packing, item: Item, rate: float) -> float:
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
