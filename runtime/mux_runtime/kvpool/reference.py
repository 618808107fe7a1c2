"""The allocator in plain Python: the meaning of the protocol, and the choice without a compiler."""

import re
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Final

from mux_core.engine import KVGeometry, Row
from mux_core.errors import InvariantError
from mux_runtime.kvpool.allocator import EXTENT_UNITS, Owner, Span, no_rows, no_units

_FREE: Final = 0
_LEASED: Final = 1
_RESERVED: Final = 2
_GAPS: Final = re.compile(rb"\0+")

_Lane = tuple[str, int]
"""A member and one of its layers: what an extent is claimed for."""


class ReferenceAllocator:
    """See `mux_runtime.kvpool.allocator.Allocator`."""

    kind: Final = "reference"

    def __init__(self, total_units: int) -> None:
        self._state = bytearray(total_units)
        self._runs: dict[int, tuple[Owner, int]] = {}
        self._used: Counter[Owner] = Counter()
        self._reserved: dict[Owner, list[Span]] = {}
        self._reserved_units = 0
        self._room = [min(EXTENT_UNITS, total_units - start)
                      for start in range(0, total_units, EXTENT_UNITS)]  # fmt: skip
        self._whole = [extent for extent, room in enumerate(self._room) if room == EXTENT_UNITS]
        self._claims: dict[int, _Lane] = {}
        self._open: dict[_Lane, list[int]] = {}  # claimed extents with room, sorted

    @property
    def total_units(self) -> int:
        return len(self._state)

    @property
    def free_units(self) -> int:
        return self.total_units - self.owned_units - self._reserved_units

    @property
    def owned_units(self) -> int:
        return self._used.total()

    @property
    def reserved_units(self) -> int:
        return self._reserved_units

    def used(self, owner: Owner) -> int:
        return self._used[owner]

    def can_lease(self, geometry: KVGeometry, rows: int) -> bool:
        return self._holds(geometry.run_units, rows * geometry.row_runs)

    def lease(self, owner: Owner, geometry: KVGeometry, rows: int) -> tuple[Row, ...]:
        units, runs = geometry.run_units, rows * geometry.row_runs
        if runs * units > self.free_units:
            raise no_rows(self, owner, geometry, rows)
        starts = self._lease_by_lane(owner, geometry, runs)
        if starts is None:
            if not self._holds(units, runs):
                raise no_rows(self, owner, geometry, rows)
            starts = self._lease_packed(owner, units, runs)
        width = geometry.row_runs
        return tuple(tuple(starts[at : at + width]) for at in range(0, runs, width))

    def free(self, rows: Sequence[Row], geometry: KVGeometry) -> None:
        self._check(rows, geometry)
        for start in chain.from_iterable(rows):
            self._give_back(start)

    def retag(self, rows: Sequence[Row], geometry: KVGeometry, owner: Owner) -> None:
        self._check(rows, geometry)
        for start in chain.from_iterable(rows):
            before, units = self._runs[start]
            self._runs[start] = (owner, units)
            self._count(before, -units)
            self._count(owner, units)

    def reclaim(self, owner: Owner) -> int:
        units = self._used[owner]
        for start in [start for start, (of, _) in self._runs.items() if of == owner]:
            self._give_back(start)
        return units

    def reserve(self, owner: Owner, units: int) -> tuple[Span, ...]:
        if units > self.free_units:
            raise no_units(self, owner, units)
        taken: list[Span] = []
        left, at = units, self.total_units
        while left:
            if left >= EXTENT_UNITS and self._whole:
                taken.append(Span(self._whole[-1] * EXTENT_UNITS, EXTENT_UNITS))
            else:
                at = self._state.rindex(_FREE, 0, at)
                taken.append(Span(at, 1))
            self._occupy(*taken[-1], _RESERVED)
            left -= taken[-1].units
        self._reserved_units += units
        self._reserved.setdefault(owner, []).extend(_merged(taken))
        return _merged(taken)

    def release(self, owner: Owner) -> tuple[Span, ...]:
        spans = _merged(self._reserved.pop(owner, []))
        for start, units in spans:
            self._vacate(start, units)
            self._reserved_units -= units
        return spans

    def free_spans(self) -> tuple[Span, ...]:
        return tuple(Span(m.start(), m.end() - m.start()) for m in _GAPS.finditer(self._state))

    def audit(self) -> None:
        expected = bytearray(self.total_units)
        used: Counter[Owner] = Counter()
        for start, (owner, units) in self._runs.items():
            used[owner] += units
            self._paint(expected, start, units, _LEASED)
        for span in chain.from_iterable(self._reserved.values()):
            self._paint(expected, span.start, span.units, _RESERVED)
        if expected != self._state or used != self._used:
            raise InvariantError("KV pool: units and owners disagree about what is free")
        if self._state.count(_RESERVED) != self._reserved_units:
            raise InvariantError("KV pool: the count of reserved units is wrong")
        self._audit_extents()

    def _audit_extents(self) -> None:
        for extent, room in enumerate(self._room):
            begin = extent * EXTENT_UNITS
            if self._state.count(_FREE, begin, begin + EXTENT_UNITS) != room:
                raise InvariantError(f"KV pool: extent {extent} miscounts its free units")
        whole = [extent for extent, room in enumerate(self._room) if room == EXTENT_UNITS]
        if whole != self._whole or not self._claims.keys().isdisjoint(whole):
            raise InvariantError("KV pool: a wholly free extent is claimed or forgotten")
        found = {extent: lane for lane, extents in self._open.items() for extent in extents}
        if found != {e: lane for e, lane in self._claims.items() if self._room[e]}:
            raise InvariantError("KV pool: claimed extents and those with room disagree")

    @staticmethod
    def _paint(units: bytearray, start: int, count: int, state: int) -> None:
        if any(units[start : start + count]) or start + count > len(units):
            raise InvariantError(f"KV pool: units {start}..{start + count - 1} have two owners")
        units[start : start + count] = bytes([state]) * count

    def _holds(self, units: int, runs: int) -> bool:
        """Whether `runs` disjoint runs of `units` lie free."""
        if runs * units > self.free_units:
            return False
        if runs <= len(self._whole) * (EXTENT_UNITS // units):
            return True
        return runs <= sum(span.units // units for span in self.free_spans())

    def _lease_by_lane(self, owner: Owner, geometry: KVGeometry, runs: int) -> list[int] | None:
        """Run starts by rules 1 to 3, or None, and nothing taken, when the rules get stuck."""
        units, per_layer = geometry.run_units, geometry.row_runs // geometry.layers
        starts: list[int] = []
        for index in range(runs):
            lane = (owner.member, index // per_layer % geometry.layers)
            start = self._next_start(lane, units)
            if start < 0:
                for taken in starts:
                    self._give_back(taken)
                return None
            self._take(owner, start, units)
            starts.append(start)
        return starts

    def _lease_packed(self, owner: Owner, units: int, runs: int) -> list[int]:
        """Run starts by rule 3 alone, which wastes least."""
        starts: list[int] = []
        for _ in range(runs):
            starts.append(self._state.find(bytes(units)))
            self._take(owner, starts[-1], units)
        return starts

    def _next_start(self, lane: _Lane, units: int) -> int:
        """Where the next run of `lane` goes; negative when nowhere. May claim an extent."""
        for extent in self._open.get(lane, ()):
            start = self._fit(extent, units)
            if start >= 0:
                return start
        if self._whole and units <= EXTENT_UNITS:
            extent = self._whole[0]
            self._claims[extent] = lane
            insort(self._open.setdefault(lane, []), extent)
            return extent * EXTENT_UNITS
        return self._state.find(bytes(units))

    def _fit(self, extent: int, units: int) -> int:
        """The lowest start for a run inside an extent; negative when it holds none."""
        if self._room[extent] < units:
            return -1
        begin, end = extent * EXTENT_UNITS, (extent + 1) * EXTENT_UNITS
        gap = bytes(units)
        if units & (units - 1):
            return self._state.find(gap, begin, end)
        aligned = range(begin, end, units)
        return next((at for at in aligned if self._state[at : at + units] == gap), -1)

    def _take(self, owner: Owner, start: int, units: int) -> None:
        self._runs[start] = (owner, units)
        self._count(owner, units)
        self._occupy(start, units, _LEASED)

    def _give_back(self, start: int) -> None:
        owner, units = self._runs.pop(start)
        self._count(owner, -units)
        self._vacate(start, units)

    def _count(self, owner: Owner, units: int) -> None:
        self._used[owner] += units
        if not self._used[owner]:
            del self._used[owner]

    def _occupy(self, start: int, units: int, state: int) -> None:
        self._state[start : start + units] = bytes([state]) * units
        for extent, part in _by_extent(start, units):
            if self._room[extent] == EXTENT_UNITS:
                _remove(self._whole, extent)
            self._room[extent] -= part
            if not self._room[extent] and extent in self._claims:
                _remove(self._open[self._claims[extent]], extent)

    def _vacate(self, start: int, units: int) -> None:
        self._state[start : start + units] = bytes(units)
        for extent, part in _by_extent(start, units):
            if not self._room[extent] and extent in self._claims:
                insort(self._open[self._claims[extent]], extent)
            self._room[extent] += part
            if self._room[extent] == EXTENT_UNITS:
                insort(self._whole, extent)
                if extent in self._claims:
                    _remove(self._open[self._claims.pop(extent)], extent)

    def _check(self, rows: Sequence[Row], geometry: KVGeometry) -> None:
        """Raises InvariantError unless all rows are leased rows of `geometry`, each named once."""
        seen: set[int] = set()
        for row in rows:
            if len(row) != geometry.row_runs:
                raise InvariantError(f"KV pool: row {row} has {len(row)} runs, its geometry "
                                     f"{geometry.row_runs}")  # fmt: skip
            for start in row:
                _, units = self._runs.get(start, (None, 0))
                if units != geometry.run_units or start in seen:
                    raise InvariantError(f"KV pool: run {start} of {geometry.run_units} units is "
                                         "not leased, or is named twice")  # fmt: skip
                seen.add(start)


def _remove(sorted_items: list[int], item: int) -> None:
    del sorted_items[bisect_left(sorted_items, item)]


def _by_extent(start: int, units: int) -> Iterable[tuple[int, int]]:
    """The extents a span touches and how many of its units lie in each."""
    end = start + units
    while start < end:
        extent = start // EXTENT_UNITS
        upto = min(end, (extent + 1) * EXTENT_UNITS)
        yield extent, upto - start
        start = upto


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Spans in any order as the fewest, by start."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and merged[-1].start + merged[-1].units == span.start:
            merged[-1] = Span(merged[-1].start, merged[-1].units + span.units)
        else:
            merged.append(span)
    return tuple(merged)
