"""Geometries and random call sequences for the allocators."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from hypothesis import strategies as st

from mux_core.engine import KVGeometry, Row
from mux_core.errors import CapacityError
from mux_runtime.kvpool.allocator import Allocator, Owner
from mux_runtime.kvpool.reference import ReferenceAllocator


def allocators() -> list[Callable[[int], Allocator]]:
    """The reference, and the native one where it is built."""
    if find_spec("mux_native") is None:
        return [ReferenceAllocator]
    from mux_runtime.kvpool.native import NativeAllocator

    return [ReferenceAllocator, NativeAllocator]


def geometry(*, layers: int, kv_heads: int, run_units: int | None = None) -> KVGeometry:
    return KVGeometry(
        layers=layers, kv_heads=kv_heads, head_dim=64, dtype="bfloat16", block_tokens=128,
        run_units=run_units or 2 * kv_heads,
    )  # fmt: skip


SHAPES = [
    geometry(layers=1, kv_heads=1), geometry(layers=3, kv_heads=2), geometry(layers=2, kv_heads=8),
    geometry(layers=2, kv_heads=5), geometry(layers=2, kv_heads=3, run_units=2),
    geometry(layers=1, kv_heads=64), geometry(layers=1, kv_heads=75),
]  # fmt: skip
OWNERS = [Owner(member, epoch) for member in ("chat", "code") for epoch in (1, 2)]

Call = tuple[Any, ...]


def totals() -> st.SearchStrategy[int]:
    """Sizes of a pool: a few whole extents, or any."""
    return st.one_of(st.sampled_from([128, 256, 384]), st.integers(0, 700))


def steps() -> st.SearchStrategy[Call]:
    """One call: its name, then its arguments as far as they can be chosen beforehand."""
    owner, shape, pick = st.sampled_from(OWNERS), st.sampled_from(SHAPES), st.integers(0, 99)
    lease = st.tuples(st.just("lease"), owner, shape, st.integers(0, 4))
    return st.one_of(
        lease, lease,
        st.tuples(st.just("free"), pick), st.tuples(st.just("free"), pick),
        st.tuples(st.just("retag"), pick, owner),
        st.tuples(st.just("reclaim"), owner),
        st.tuples(st.just("reserve"), owner, st.integers(0, 300)),
        st.tuples(st.just("release"), owner),
    )  # fmt: skip


class Twins:
    """Performs the same calls on several allocators and keeps its own account of the rows."""

    def __init__(self, pools: Sequence[Allocator]) -> None:
        self.pools = pools
        self.held: list[tuple[Owner, KVGeometry, Row]] = []
        self.reserved = dict.fromkeys(OWNERS, 0)

    def perform(self, call: Call) -> None:
        getattr(self, f"_{call[0]}")(*call[1:])

    def check(self) -> None:
        """Every pool keeps its rules and agrees with our account, unit by unit."""
        units = [run + unit for _, shape, row in self.held for run in row
                 for unit in range(shape.run_units)]  # fmt: skip
        assert len(set(units)) == len(units)
        for pool in self.pools:
            pool.audit()
            assert pool.owned_units == len(units)
            assert pool.reserved_units == sum(self.reserved.values())
            assert pool.free_units + pool.owned_units + pool.reserved_units == pool.total_units
            free = {u for start, count in pool.free_spans() for u in range(start, start + count)}
            assert len(free) == pool.free_units
            assert free.isdisjoint(units)
            for owner in OWNERS:
                mine = sum(shape.row_units for of, shape, _ in self.held if of == owner)
                assert pool.used(owner) == mine

    def free_everything(self) -> None:
        for _, shape, row in self.held:
            for pool in self.pools:
                pool.free([row], shape)
        self.held = []
        for owner in OWNERS:
            self._release(owner)
        assert all(pool.free_units == pool.total_units for pool in self.pools)

    def _lease(self, owner: Owner, shape: KVGeometry, rows: int) -> None:
        fits = self._same(lambda pool: pool.can_lease(shape, rows))
        leased = self._same(lambda pool: _or_none(lambda: pool.lease(owner, shape, rows)))
        assert (leased is not None) == fits
        self.held += [(owner, shape, row) for row in leased or ()]

    def _free(self, pick: int) -> None:
        if self.held:
            _, shape, row = self.held.pop(pick % len(self.held))
            self._same(lambda pool: pool.free([row], shape))

    def _retag(self, pick: int, owner: Owner) -> None:
        if self.held:
            _, shape, row = self.held[pick % len(self.held)]
            self._same(lambda pool: pool.retag([row], shape, owner))
            self.held[pick % len(self.held)] = (owner, shape, row)

    def _reclaim(self, owner: Owner) -> None:
        mine = sum(shape.row_units for of, shape, _ in self.held if of == owner)
        assert self._same(lambda pool: pool.reclaim(owner)) == mine
        self.held = [entry for entry in self.held if entry[0] != owner]

    def _reserve(self, owner: Owner, units: int) -> None:
        spans = self._same(lambda pool: _or_none(lambda: pool.reserve(owner, units)))
        if spans is not None:
            assert sum(span.units for span in spans) == units
            self.reserved[owner] += units

    def _release(self, owner: Owner) -> None:
        spans = self._same(lambda pool: pool.release(owner))
        assert sum(span.units for span in spans) == self.reserved[owner]
        self.reserved[owner] = 0

    def _same(self, call: Callable[[Allocator], Any]) -> Any:
        """What every pool answers; they must agree."""
        answers = [call(pool) for pool in self.pools]
        assert all(answer == answers[0] for answer in answers)
        return answers[0]


def _or_none(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except CapacityError:
        return None
