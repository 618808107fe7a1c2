"""Too few GPUs for all demand: how goodput and the worst ratio are traded.

For each of a ladder of floors, all LLMs are packed at that part of their demand, on as many GPUs as
that takes; what the cluster has beyond is added GPU by GPU, each spent on what pays most. Neither
the packing of a floor nor a step of its climb knows where the climb will end, and what is left out
is left out alike however many GPUs there are. So whatever is best on N GPUs is on the way to what
is best on N + 1, and one more GPU is never worth less.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from mux_core.planners.inserting import Inserter, Packing, missing_replicas
from mux_core.planners.packing import Item
from mux_core.planners.search import Budget, PackingSearch

SEED = 20_240_402
LADDER = tuple(0.86**step for step in range(1, 24))
"""Floors, as parts of every demand; the last is 0.03."""
BASE = Budget(24, 3_000)
"""Work on the packing of one floor."""
MOST_IMPROVED = 200
"""Items up to which that is done."""
POLISH = Budget(32, 2_500)
"""Work on the packing of each number of GPUs of a climb."""
LONG_POLISH = Budget(120, 100_000)
"""Work on whole groups per replica."""
CLIMBS = 32
"""Largest number of strides of a climb: above so many GPUs they are taken several at a time."""
CLASS_WEIGHT = 10.0
MARGIN = 1.05
"""Most goodput of a climb over that of the climb without floor: what cannot win is left out."""
EPSILON = 1e-9


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """What a packing serves: goodput as a share of all demand, and the worst ratio.

    `replicas` is minus the number of those that must be and have no place.
    """

    replicas: int
    worth: float = field(init=False)
    goodput: float
    worst: float

    def is_ahead_of(self, other: "Service") -> bool:
        """No less in either figure."""
        return self.goodput >= other.goodput and self.worst >= other.worst

    @property
    def all_met(self) -> bool:
        return not self.replicas and self.goodput >= 1 and self.worst >= 1

    def __post_init__(self) -> None:
        # Goodput counts twice: a floor near its limit costs much goodput for little fairness.
        object.__setattr__(self, "worth", round(self.goodput**2 * self.worst, 9))


def service_of(packing: Packing, items: Sequence[Item]) -> Service:
    """Of the items that some group can hold.

    A request of one priority counts as `CLASS_WEIGHT` of the next lower one.
    """
    weights = _class_weights(items)
    total = lost = 0.0
    worst = 1.0
    for item in items:
        if not item.kinds:
            continue
        weight = weights[item.llm.priority]
        total += item.rate * weight
        unserved = packing.unserved.get(item.index, 0.0)
        lost += unserved * weight
        worst = min(worst, 1 - unserved / item.rate)
    return Service(
        replicas=-missing_replicas(packing, items),
        goodput=round(1 - lost / total, 9) if total else 1.0,
        worst=max(0.0, round(worst, 9)),
    )


def _class_weights(items: Sequence[Item]) -> dict[int, float]:
    classes = sorted({item.llm.priority for item in items})
    return {priority: CLASS_WEIGHT**at for at, priority in enumerate(classes)}


@dataclass(slots=True)
class Ladder:
    """Packings by floor. `base` holds what may not move, in units that `pinned` names."""

    inserter: Inserter
    items: Sequence[Item]
    base: Packing
    pinned: frozenset[int]

    def climb(self) -> Iterator[Packing]:
        """The best packing so far within the capacity, again and again, none worse."""
        *_, best = self._climbed(self._at_floor(0.0))
        got = self._service(best)
        most = min(1.0, MARGIN * got.goodput)
        reached: dict[int, Service] = {}
        yield best
        for above, start in self._starts():
            # A climb counts below the next floor, and as far as it serves hardly more than one
            # without floor: so where that is not enough, neither it nor any lower one is missed.
            if most**2 * above <= got.worth:
                return
            for packing in self._climbed(start, above, reached):
                found = self._service(packing)
                if found > got and found.goodput <= most and found.worst <= above + EPSILON:
                    best, got = packing, found
                yield best

    def highest(self) -> Iterator[Packing]:
        """The climb from the highest floor: only on that one does all demand being met count."""
        start = self._at_floor(LADDER[0])
        if self.inserter.capacity.holds(start.counts):
            yield from self._climbed(start, 1.0, {})

    def ahead_of(self, whole: Packing) -> Iterator[Packing]:
        """Better and better packings that serve no less than `whole` in either figure."""
        search = PackingSearch.for_demand(self.inserter, self.items, SEED)
        yield from self._polished(whole, search, 1.0, self._service(whole))

    def floors(self) -> Iterator[tuple[float, Packing]]:
        """(floor, where its climb ends), the highest floor first."""
        for above, start in self._starts():
            *_, last = self._climbed(start, above, {})
            yield self._service(start).worst, last

    def _starts(self) -> Iterator[tuple[float, Packing]]:
        """(next higher floor, packing of a floor) within the capacity; the highest per size."""
        fewest: int | None = None
        above = 1.0
        for floor in LADDER:
            start = self._at_floor(floor)
            if fewest is not None and start.gpus >= fewest:
                continue
            if self.inserter.capacity.holds(start.counts):
                yield above, start
            fewest, above = start.gpus, floor

    def _at_floor(self, floor: float) -> Packing:
        """`floor` of every demand on as few GPUs as that takes; the rest is unserved."""
        packing = self.base.copy()
        if floor > 0:
            roomy = Inserter(self.inserter.oracle, self.inserter.capacity.endless())
            search = PackingSearch.for_demand(roomy, self.items, SEED, scale=floor)
            packing = search.construct(1, packing)
            if len(self.items) <= MOST_IMPROVED:
                *_, packing = (packing, *search.improve(packing, BASE, self.pinned))
            packing = packing.copy()
        held = packing.rates()
        packing.unserved = {
            item.index: item.rate - held.get(item.index, 0.0)
            for item in self.items
            if item.rate - held.get(item.index, 0.0) > EPSILON * item.rate
        }
        return packing

    def _climbed(
        self, packing: Packing, above: float = 0.0, reached: dict[int, Service] | None = None
    ) -> Iterator[Packing]:
        """Ever better packings, GPU by GPU; polished on each unless `reached` is None.

        `reached` holds what higher floors came to on so many GPUs. A climb that is behind ends.
        """
        limit = self.inserter.capacity.limit
        for gpus in _strides(packing.gpus, limit):
            inserter = Inserter(self.inserter.oracle, replace(self.inserter.capacity, limit=gpus))
            search = PackingSearch.for_demand(inserter, self.items, SEED + gpus)
            packing = self._filled(packing, search)
            yield packing
            if reached is None:
                continue
            if gpus in reached and self._service(packing) <= reached[gpus]:
                return
            for better in self._polished(packing, search, above):
                packing = better
                yield packing
            reached[gpus] = self._service(packing)
            # Beside the way: the next GPU may be worth more together with the one left here.
            yield self._relieved(packing, search)

    def _polished(
        self, best: Packing, search: PackingSearch, above: float, least: Service | None = None
    ) -> Iterator[Packing]:
        rank = self._rank(best)
        oracle = self.inserter.oracle
        budget = POLISH if least is None else LONG_POLISH
        end = oracle.asked + budget.estimates
        for step in range(budget.steps):
            if oracle.asked >= end:
                return
            floor = rank[0].worst
            targets = tuple(floor * item.rate for item in self.items)
            search.goal = replace(search.goal, targets=targets, floor=floor)
            found = search.attempt(best, self.pinned, step)
            reached = self._rank(found)
            if least is not None and not reached[0].is_ahead_of(least):
                continue
            if reached >= rank and reached[0].worst <= above + EPSILON:
                best, rank = found, reached
            yield best

    def _filled(self, packing: Packing, search: PackingSearch) -> Packing:
        """What is unserved, as far as there is room, by priority and rate per GPU."""
        packing = packing.copy()
        rest, packing.unserved = packing.unserved, {}
        search.fill_rest(packing, rest)
        return packing

    def _relieved(self, packing: Packing, search: PackingSearch) -> Packing:
        """Where GPUs are left that nobody in want can use, who shares with one in want moves."""
        if packing.gpus >= search.inserter.capacity.limit:
            return packing
        best = packing
        for at, there in enumerate(packing.bins):
            wanting = {index for index, _ in there.members if index in packing.unserved}
            if not wanting or there.fixed in self.pinned:
                continue
            for index, rate in there.members:
                moved = packing.copy()
                left = [member for member in there.members if member[0] != index]
                moved.bins[at] = self.inserter.oracle.make(there.kind, left, there.fixed)
                if index in wanting or search.inserter.open(moved, self.items[index], rate) < rate:
                    continue
                best = max(best, self._filled(moved, search), key=self._rank)
        return best

    def _service(self, packing: Packing) -> Service:
        return service_of(packing, self.items)

    def _rank(self, packing: Packing) -> tuple[Service, float]:
        return self._service(packing), packing.spread


def _strides(first: int, last: int) -> Iterator[int]:
    """From `first` to `last`, the same ones between for any first."""
    stride = max(1, last // CLIMBS)
    if first < last:
        yield first
    yield from range((first // stride + 1) * stride, last, stride)
    yield last
