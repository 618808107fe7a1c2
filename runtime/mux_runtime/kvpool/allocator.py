"""What leases head units: the protocol both allocators keep, and how one is chosen.

Every head unit is free, owned (leased in a run to one owner) or reserved (weights are charged to
it). Units come in *extents* of `EXTENT_UNITS`. A run is taken, in this order, from

1. the lowest extent claimed by the owner's member for that layer,
2. the lowest extent that is wholly free, which the member then claims for that layer,
3. the lowest free run of that size anywhere.

Inside an extent a run of a power-of-two size starts at a multiple of its size, any other at the
first gap that holds it. An extent that becomes wholly free is nobody's again. When this order
leaves too little although enough lies free, the whole lease is packed by rule 3 alone; so a lease
succeeds exactly if `can_lease` says so, whoever asks. Calls with the same arguments in the same
order give the same ids in every implementation.

Not safe for threads: one caller, the unit scheduler.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from mux_core.engine import KVGeometry, Row
from mux_core.errors import CapacityError

EXTENT_UNITS: Final = 128
"""Units a layer of a member claims at once: 2 MiB of 16 KiB units, one large page."""

EXHAUSTED: Final = "KVPoolExhausted"
"""Reason of the CapacityError when units or runs are lacking."""


class Owner(NamedTuple):
    """Who holds runs: a member and the epoch of its host. A restarted host has a new epoch.

    All epochs of a member share its extents.
    """

    member: str
    epoch: int = 0


class Span(NamedTuple):
    """Consecutive units."""

    start: int
    units: int


class Allocator(Protocol):
    """Head units of one GPU. Rows stay leased until freed or reclaimed."""

    @property
    def kind(self) -> str:
        """Which implementation this is: `native` or `reference`."""
        ...

    @property
    def total_units(self) -> int: ...

    @property
    def free_units(self) -> int: ...

    @property
    def owned_units(self) -> int: ...

    @property
    def reserved_units(self) -> int: ...

    def used(self, owner: Owner) -> int:
        """Units leased to `owner`."""
        ...

    def can_lease(self, geometry: KVGeometry, rows: int) -> bool:
        """Whether `lease` of that many rows would succeed now. Changes nothing."""
        ...

    def lease(self, owner: Owner, geometry: KVGeometry, rows: int) -> tuple[Row, ...]:
        """Leases `rows` rows to `owner`: all of them, or none and CapacityError."""
        ...

    def free(self, rows: Sequence[Row], geometry: KVGeometry) -> None:
        """Gives leased rows back. A row that is not leased is an InvariantError, freeing none."""
        ...

    def retag(self, rows: Sequence[Row], geometry: KVGeometry, owner: Owner) -> None:
        """Makes `owner` the owner of leased rows; nothing moves."""
        ...

    def reclaim(self, owner: Owner) -> int:
        """Frees every run of a dead owner and answers how many units that were."""
        ...

    def reserve(self, owner: Owner, units: int) -> tuple[Span, ...]:
        """Takes units away from KV, from the high end; all, or none and CapacityError.

        Answers which, so that their pages can be given back.
        """
        ...

    def release(self, owner: Owner) -> tuple[Span, ...]:
        """Frees everything `owner` reserved and answers what that was; nothing if nothing."""
        ...

    def free_spans(self) -> tuple[Span, ...]:
        """All free units, by start. For giving pages back, not for leasing."""
        ...

    def audit(self) -> None:
        """Raises InvariantError unless free + owned + reserved = all and each has one owner."""
        ...


def no_rows(pool: Allocator, owner: Owner, geometry: KVGeometry, rows: int) -> CapacityError:
    """The refusal of a lease."""
    return CapacityError(
        f"KV pool: {owner.member} wants {rows} rows of {geometry.row_units} units in runs of "
        f"{geometry.run_units}, {pool.free_units} of {pool.total_units} units are free; free "
        "rows, or wait",
        reason=EXHAUSTED,
    )


def no_units(pool: Allocator, owner: Owner, units: int) -> CapacityError:
    """The refusal of a reservation."""
    return CapacityError(
        f"KV pool: {owner.member} wants to reserve {units} units, {pool.free_units} of "
        f"{pool.total_units} are free; free rows, or give the unit more memory",
        reason=EXHAUSTED,
    )


def open_allocator(total_units: int) -> Allocator:
    """The native allocator where `mux_native` is installed, else the slower reference.

    Both give the same ids; `kind` says which it is. A `mux_native` that is installed but does not
    load is an error, not a reason to fall back.
    """
    try:
        from mux_runtime.kvpool.native import NativeAllocator
    except ModuleNotFoundError as error:
        if error.name != "mux_native":
            raise
        from mux_runtime.kvpool.reference import ReferenceAllocator

        return ReferenceAllocator(total_units)
    return NativeAllocator(total_units)
