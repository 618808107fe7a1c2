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
ROOM_PRECISION = 1 / 64
EDGE = 1e-5
LEAST_ROOM = 1 / 64
"""Rooms below this part of what a group carries of an LLM alone are only found whole."""
LOAD_CEILING = 1.6
"""Bins are never fuller (in solo rates): in no profile do shares pay that well."""
MAX_REMEMBERED = 500_000

Members = tuple[tuple[int, float], ...]
"""(item index, rate) each."""
Key = tuple[tuple[int, float], ...]
"""(cost key, rate) of each member, in order: what an estimate depends on."""


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
    solos: dict[GroupKind, float]
    """Filled by the oracle as they are asked for."""

    @property
    def name(self) -> ModelName:
        return self.llm.name


@dataclass(frozen=True, slots=True)
class Bin:
    """A group and its members as (item index, rate), by index. `load`: sum of rate/solo rate."""

    kind: GroupKind
    members: Members
    load: float
    footprint: float
    mask: int
    """One bit per member's index."""
    key: Key
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
    _fits: dict[tuple[GroupKind, Key], bool] = field(default_factory=dict)
    _solo: dict[tuple[int, GroupKind], float] = field(default_factory=dict)
    _keys: dict[Hashable, int] = field(default_factory=dict)
    closed: frozenset[tuple[ModelName, int]] = frozenset()
    """LLMs that may not join a bin that continues the current unit of that index."""
    full: frozenset[int] = frozenset()
    """Indices of current units that nobody may join."""
    _rooms: dict[tuple[GroupKind, int, Key], float] = field(default_factory=dict)
    asked: int = 0
    """Questions so far, answered from memory or not: what a search budget counts."""

    def forget_items(self) -> None:
        """Starts a new problem; answers stay, they depend on costs and rates alone."""
        self.items = []
        self.closed, self.full = frozenset(), frozenset()
        if len(self._fits) > MAX_REMEMBERED:
            self._fits.clear()
            self._rooms.clear()

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
            solos={},
        )
        self.items.append(item)
        return item

    def solo(self, item: Item, kind: GroupKind) -> float:
        """The highest rate one replica carries alone on a group; 0 when it cannot."""
        known = item.solos.get(kind)
        if known is None:
            known = item.solos[kind] = self._solo_of(item, kind)
        return known

    def _solo_of(self, item: Item, kind: GroupKind) -> float:
        at = (item.key, kind)
        if at not in self._solo:
            asked = self.asked
            self._solo[at] = self._highest_alone(item, kind)
            self.asked = asked  # A later problem finds it known; both must count the same work.
        return self._solo[at]

    def make(self, kind: GroupKind, members: Iterable[tuple[int, float]], fixed: int = -1) -> Bin:
        ordered = tuple(sorted(members))
        load = footprint = 0.0
        mask = 0
        key = []
        for index, rate in ordered:
            item = self.items[index]
            load += rate / (self.solo(item, kind) or 1e-9)
            footprint += item.footprints.get(kind) or self.estimator.footprint(item.llm, kind)
            mask |= 1 << index
            key.append((item.key, rate))
        return Bin(kind, ordered, load, footprint, mask, tuple(sorted(key)), fixed)

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
        if held is None or there.fixed in self.full or (item.name, there.fixed) in self.closed:
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
        self.asked += 1
        if known is None:
            order = sorted(members, key=lambda member: (items[member[0]].key, member[1]))
            asks = [Ask(llm=items[index].llm, rate=rate) for index, rate in order]
            known = self._fits[at] = self.estimator.carries(kind, asks)
        return known

    def takes(self, there: Bin, item: Item, rate: float) -> bool:
        """Can `item`, which may join, get `rate` there, everyone else keeping theirs?"""
        return self.room(there, item, rate) >= rate

    def room(self, there: Bin, item: Item, want: float) -> float:
        """How much of `want` there is for an item that may join; within 1/64 of a group's worth."""
        return self._up_to(item, there.members, there.key, there.kind, want)

    def growth(self, there: Bin, item: Item, want: float) -> float:
        """How much more of a member it already holds the bin can take, up to `want`."""
        had = there.rate_of(item.index) or 0.0
        others = tuple(member for member in there.members if member[0] != item.index)
        key = tuple(sorted((self.items[index].key, rate) for index, rate in others))
        return max(0.0, self._up_to(item, others, key, there.kind, had + want) - had)

    def _up_to(self, item: Item, others: Members, key: Key, kind: GroupKind, want: float) -> float:
        """The most of `want` beside these others, 0 when none."""
        if want > self.solo(item, kind) * LEAST_ROOM:
            self.asked += 1
            at = (kind, item.key, key)
            # Remembered: a search asks the same bins often.
            most = self._rooms.get(at)
            if most is None:
                asked = self.asked
                most = self._rooms[at] = self._largest_room(item, others, kind)
                self.asked = asked
            if want > most:
                return most
        return want if self.fits(kind, (*others, (item.index, want))) else 0.0

    def _largest_room(self, item: Item, others: Members, kind: GroupKind) -> float:
        solo = self.solo(item, kind)
        load = sum(rate / (self.solo(self.items[index], kind) or 1e-9) for index, rate in others)
        low, high = solo * LEAST_ROOM, solo * min(1.0, LOAD_CEILING - load)
        # Most bins have no room at all; one question settles those.
        if high <= low or not self.fits(kind, (*others, (item.index, low))):
            return 0.0
        if self.fits(kind, (*others, (item.index, high))):
            return high
        return self._edge(item, others, kind, low, high, ROOM_PRECISION * solo)

    def _highest_alone(self, item: Item, kind: GroupKind) -> float:
        low = self._edge(item, (), kind, 0.0, 1e4, 0.0)
        # A hair below the edge, so that another order of summation finds it feasible as well.
        shaved = low * (1 - EDGE)
        return shaved if self.fits(kind, ((item.index, shaved),)) else low

    def _edge(
        self,
        item: Item,
        others: Members,
        kind: GroupKind,
        low: float,
        high: float,
        precision: float,
    ) -> float:
        """The highest rate that fits between one that does and one that does not."""
        while high - low > max(precision, 1e-4 * high, 1e-9):
            middle = (low + high) / 2
            if self.fits(kind, (*others, (item.index, middle))):
                low = middle
            else:
                high = middle
        return low
