"""LLMs and the bins that hold them while a search runs: values that are cheap to copy and compare.

A bin is a group kind with members and the rate of each. An item is an LLM with the rate it must
get. The oracle answers whether members fit a bin together and remembers every answer: LLMs of equal
cost are interchangeable, so most questions of a search are asked before.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from mux_core.estimator.unit import Ask, GroupKind, UnitEstimator
from mux_core.llm import Llm
from mux_core.planning import PlanningPolicy
from mux_core.units import ModelName

MAX_MEMBERS = 8
LEAST_RATE = 1e-3
"""Requests/s assumed for an LLM without demand, so that it still gets a place and some KV."""
ROOM_PRECISION = 1 / 32
EDGE = 1e-5
LEAST_ROOM = 0.1
"""Rooms below this part of what is wanted are not looked for."""
MAX_REMEMBERED = 500_000


@dataclass(frozen=True, slots=True)
class Item:
    """One LLM to place, with what a search asks most often."""

    index: int
    llm: Llm
    rate: float
    key: int
    kinds: tuple[GroupKind, ...]
    footprints: Mapping[GroupKind, float]
    """By kind of group that can hold it."""
    tenant: str
    exclusive: bool

    @property
    def name(self) -> ModelName:
        return self.llm.name


@dataclass(frozen=True, slots=True)
class Bin:
    """A group and its members as (item index, rate), by index. `load`: sum of rate/solo rate."""

    kind: GroupKind
    members: tuple[tuple[int, float], ...]
    load: float
    footprint: float
    mask: int
    """One bit per member's index."""
    fixed: int = -1
    """Index of the current unit this bin continues; -1 for a new one."""

    def holds(self, index: int) -> bool:
        return bool(self.mask >> index & 1)

    def rate_of(self, index: int) -> float | None:
        if not self.mask >> index & 1:
            return None
        return next(rate for member, rate in self.members if member == index)


@dataclass(slots=True)
class Oracle:
    """What fits together, under one estimator and one policy."""

    estimator: UnitEstimator
    policy: PlanningPolicy
    items: list[Item] = field(default_factory=list)
    _fits: dict[tuple[GroupKind, tuple[tuple[int, float], ...]], bool] = field(default_factory=dict)
    _solo: dict[tuple[int, GroupKind], float] = field(default_factory=dict)
    _keys: dict[Hashable, int] = field(default_factory=dict)
    closed: frozenset[tuple[ModelName, int]] = frozenset()
    """LLMs that may not join a bin that continues the current unit of that index."""
    asked: int = 0
    """Estimates made so far: the measure of work that a search budget counts."""

    def forget_items(self) -> None:
        """Starts a new problem; answers stay, they depend on costs and rates alone."""
        self.items = []
        self.closed = frozenset()
        if len(self._fits) > MAX_REMEMBERED:
            self._fits.clear()

    def add(self, llm: Llm, rate: float, kinds: Sequence[GroupKind]) -> Item:
        """Makes the item of one LLM; its place in `items` is its index."""
        key = self._keys.setdefault(self.estimator.cost_key(llm), len(self._keys))
        possible = self.estimator.sizes(llm, kinds)
        item = Item(
            index=len(self.items),
            llm=llm,
            rate=max(rate, LEAST_RATE),
            key=key,
            kinds=possible,
            footprints={kind: self.estimator.footprint(llm, kind) for kind in possible},
            tenant=llm.sharing.tenant_group,
            exclusive=llm.sharing.exclusive,
        )
        self.items.append(item)
        return item

    def solo(self, item: Item, kind: GroupKind) -> float:
        """The highest rate one replica carries alone on a group; 0 when it cannot."""
        at = (item.key, kind)
        if at not in self._solo:
            self._solo[at] = self._bisect(item, (), kind, 1e4)
        return self._solo[at]

    def make(self, kind: GroupKind, members: Iterable[tuple[int, float]], fixed: int = -1) -> Bin:
        ordered = tuple(sorted(members))
        load = footprint = 0.0
        mask = 0
        for index, rate in ordered:
            item = self.items[index]
            load += rate / (self.solo(item, kind) or 1e-9)
            footprint += item.footprints.get(kind, 1.0)
            mask |= 1 << index
        return Bin(kind, ordered, load, footprint, mask, fixed)

    def joined(self, there: Bin, item: Item, rate: float) -> Bin:
        """`there` with `rate` more of `item`."""
        others = [(index, r) for index, r in there.members if index != item.index]
        had = there.rate_of(item.index) or 0.0
        return self.make(there.kind, [*others, (item.index, had + rate)], there.fixed)

    def may_join(self, there: Bin, item: Item) -> bool:
        """The rules that need no estimate, and no more members than a search considers."""
        return len(there.members) < MAX_MEMBERS and self.allows(there, item)

    def allows(self, there: Bin, item: Item) -> bool:
        """The rules that need no estimate: tenants, exclusiveness, memory, what a unit can read."""
        kind = there.kind
        held = item.footprints.get(kind)
        if held is None or (self.closed and (item.name, there.fixed) in self.closed):
            return False
        if not there.members:
            return True
        if held + there.footprint > 1 or there.mask >> item.index & 1 or item.exclusive:
            return False
        if len(there.members) >= self._most_members(kind):
            return False
        # Members share a tenant group, and one that is exclusive is alone: one speaks for all.
        first = self.items[there.members[0][0]]
        return first.tenant == item.tenant and not first.exclusive

    def _most_members(self, kind: GroupKind) -> float:
        if not self.policy.allow_sharing:
            return 1
        limit = self.policy.max_tensor_members
        return inf if limit is None or kind.gpus == 1 else limit

    def fits(self, kind: GroupKind, members: Sequence[tuple[int, float]]) -> bool:
        """Do these members all get their rates (and their service levels) on one group?"""
        items = self.items
        at = (kind, tuple(sorted([(items[index].key, rate) for index, rate in members])))
        known = self._fits.get(at)
        if known is None:
            self.asked += 1
            order = sorted(members, key=lambda member: (items[member[0]].key, member[1]))
            asks = [Ask(llm=items[index].llm, rate=rate) for index, rate in order]
            known = self._fits[at] = self.estimator.outcome(kind, asks).fits
        return known

    def takes(self, there: Bin, item: Item, rate: float) -> bool:
        """May `item` join and get `rate`, everyone else keeping theirs?"""
        return self.may_join(there, item) and self.fits(
            there.kind, (*there.members, (item.index, rate))
        )

    def room(self, there: Bin, item: Item, want: float) -> float:
        """How much of `want` the bin can take, 0 when none; a lower bound within 1/32 of `want`."""
        if not self.may_join(there, item):
            return 0.0
        return self._bisect(item, there.members, there.kind, want)

    def growth(self, there: Bin, item: Item, want: float) -> float:
        """How much more of a member it already holds the bin can take, up to `want`."""
        had = there.rate_of(item.index) or 0.0
        others = tuple(member for member in there.members if member[0] != item.index)
        return max(0.0, self._bisect(item, others, there.kind, had + want, floor=had) - had)

    def _bisect(
        self,
        item: Item,
        others: tuple[tuple[int, float], ...],
        kind: GroupKind,
        want: float,
        floor: float = 0.0,
    ) -> float:
        if self.fits(kind, (*others, (item.index, want))):
            return want
        low, high = floor, want
        if others or floor:
            # Most bins have no room at all; one question settles those.
            least = floor + LEAST_ROOM * (want - floor)
            if not self.fits(kind, (*others, (item.index, least))):
                return floor
            low = least
        precision = ROOM_PRECISION * want if others else 0.0
        while high - low > max(precision, 1e-4 * high, 1e-9):
            middle = (low + high) / 2
            if self.fits(kind, (*others, (item.index, middle))):
                low = middle
            else:
                high = middle
        if low <= floor:
            return low
        # A hair below the edge, so that another order of summation finds it feasible as well.
        shaved = max(floor, low * (1 - EDGE))
        return shaved if self.fits(kind, (*others, (item.index, shaved))) else low
