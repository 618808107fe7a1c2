"""The allocator in C++ behind the same protocol. Importing this needs `mux_native`."""

from collections.abc import Sequence
from typing import Final

from mux_core.engine import KVGeometry, Row
from mux_core.errors import InvariantError
from mux_native import BlockAllocator, Exhausted, InvariantBroken
from mux_runtime.kvpool.allocator import Owner, Span, no_rows, no_units


class NativeAllocator:
    """See `mux_runtime.kvpool.allocator.Allocator`."""

    kind: Final = "native"

    def __init__(self, total_units: int) -> None:
        self._core = BlockAllocator(total_units)
        self._tags: dict[Owner, int] = {}
        self._members: dict[str, int] = {}

    @property
    def total_units(self) -> int:
        return self._core.total_units

    @property
    def free_units(self) -> int:
        return self._core.free_units

    @property
    def owned_units(self) -> int:
        return self._core.owned_units

    @property
    def reserved_units(self) -> int:
        return self._core.reserved_units

    def used(self, owner: Owner) -> int:
        return self._core.used(self._tag(owner))

    def can_lease(self, geometry: KVGeometry, rows: int) -> bool:
        layers, runs, units = geometry.layers, geometry.row_runs, geometry.run_units
        return self._core.can_lease(layers, runs // layers, units, rows)

    def lease(self, owner: Owner, geometry: KVGeometry, rows: int) -> tuple[Row, ...]:
        layers, runs, units = geometry.layers, geometry.row_runs, geometry.run_units
        try:
            return self._core.lease(self._tag(owner), layers, runs // layers, units, rows)
        except Exhausted:
            raise no_rows(self, owner, geometry, rows) from None

    def free(self, rows: Sequence[Row], geometry: KVGeometry) -> None:
        try:
            self._core.free(rows, geometry.row_runs, geometry.run_units)
        except InvariantBroken as error:
            raise InvariantError(f"KV pool: {error}") from None

    def retag(self, rows: Sequence[Row], geometry: KVGeometry, owner: Owner) -> None:
        try:
            self._core.retag(rows, geometry.row_runs, geometry.run_units, self._tag(owner))
        except InvariantBroken as error:
            raise InvariantError(f"KV pool: {error}") from None

    def reclaim(self, owner: Owner) -> int:
        return self._core.reclaim(self._tag(owner))

    def reserve(self, owner: Owner, units: int) -> tuple[Span, ...]:
        try:
            return _spans(self._core.reserve(self._tag(owner), units))
        except Exhausted:
            raise no_units(self, owner, units) from None

    def release(self, owner: Owner) -> tuple[Span, ...]:
        return _spans(self._core.release(self._tag(owner)))

    def free_spans(self) -> tuple[Span, ...]:
        return _spans(self._core.free_spans())

    def audit(self) -> None:
        try:
            self._core.audit()
        except InvariantBroken as error:
            raise InvariantError(f"KV pool: {error}") from None

    def _tag(self, owner: Owner) -> int:
        """The number by which the core knows an owner; the same for ever."""
        tag = self._tags.get(owner)
        if tag is None:
            member = self._members.setdefault(owner.member, len(self._members))
            tag = self._tags[owner] = self._core.add_owner(member)
        return tag


def _spans(pairs: tuple[tuple[int, int], ...]) -> tuple[Span, ...]:
    return tuple(Span(start, units) for start, units in pairs)
