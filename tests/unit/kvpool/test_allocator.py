"""One suite for both allocators: what a lease means, and that nothing is lost or shared."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpool_builders import Twins, allocators, geometry, steps, totals
from mux_core.errors import CapacityError, InvariantError
from mux_runtime.kvpool.allocator import EXHAUSTED, EXTENT_UNITS, Allocator, Owner, Span

CHAT, CODE = Owner("chat"), Owner("code")


@pytest.fixture(params=allocators(), ids=lambda kind: kind.kind)
def opened(request: pytest.FixtureRequest) -> Callable[[int], Allocator]:
    kind: Callable[[int], Allocator] = request.param
    return kind


def test_layers_lie_in_extents_of_their_own(opened: Callable[[int], Allocator]) -> None:
    pool = opened(8 * EXTENT_UNITS)
    rows = pool.lease(CHAT, geometry(layers=2, kv_heads=8), 2)
    assert rows == ((0, EXTENT_UNITS), (16, EXTENT_UNITS + 16))
    assert (pool.free_units, pool.owned_units, pool.used(CHAT)) == (1024 - 64, 64, 64)
    pool.audit()


def test_both_phases_of_a_member_share_extents(opened: Callable[[int], Allocator]) -> None:
    pool, shape = opened(8 * EXTENT_UNITS), geometry(layers=1, kv_heads=8)
    assert pool.lease(Owner("chat", 1), shape, 1) == ((0,),)
    assert pool.lease(Owner("chat", 2), shape, 1) == ((16,),)
    assert pool.lease(CODE, shape, 1) == ((EXTENT_UNITS,),)


def test_sizes_without_a_power_of_two_fill_an_extent(opened: Callable[[int], Allocator]) -> None:
    pool = opened(2 * EXTENT_UNITS)
    rows = pool.lease(CHAT, geometry(layers=1, kv_heads=10), 7)
    assert [row[0] for row in rows] == [0, 20, 40, 60, 80, 100, 128]


def test_pairs_of_a_layer_share_its_extent(opened: Callable[[int], Allocator]) -> None:
    pool = opened(2 * EXTENT_UNITS)
    rows = pool.lease(CHAT, geometry(layers=2, kv_heads=3, run_units=2), 1)
    assert rows == ((0, 2, 4, 128, 130, 132),)


def test_without_free_extents_any_gap_is_taken(opened: Callable[[int], Allocator]) -> None:
    pool = opened(EXTENT_UNITS)
    pool.lease(CHAT, geometry(layers=1, kv_heads=1), 1)
    assert pool.lease(CODE, geometry(layers=1, kv_heads=3), 1) == ((2,),)
    pool.audit()


def test_a_run_may_be_wider_than_an_extent(opened: Callable[[int], Allocator]) -> None:
    pool = opened(400)
    assert pool.lease(CHAT, geometry(layers=1, kv_heads=100), 2) == ((0,), (200,))
    pool.audit()


def test_a_pool_smaller_than_an_extent_is_filled(opened: Callable[[int], Allocator]) -> None:
    pool = opened(12)
    rows = pool.lease(CHAT, geometry(layers=2, kv_heads=1), 3)
    assert sorted(run for row in rows for run in row) == [0, 2, 4, 6, 8, 10]
    assert pool.free_units == 0


def test_a_power_of_two_starts_at_a_multiple_of_its_size(
    opened: Callable[[int], Allocator],
) -> None:
    pool = opened(EXTENT_UNITS)
    assert pool.lease(CHAT, geometry(layers=1, kv_heads=1), 1) == ((0,),)
    assert pool.lease(CODE, geometry(layers=1, kv_heads=2), 1) == ((2,),)
    assert pool.lease(CHAT, geometry(layers=1, kv_heads=2), 1) == ((8,),)


def test_a_lease_is_packed_before_it_is_refused(opened: Callable[[int], Allocator]) -> None:
    """Units 8 to 39 are free in chat's extent: one run of 16 at a multiple of 16, or two packed."""
    pool, wide = opened(EXTENT_UNITS), geometry(layers=1, kv_heads=16)
    pool.lease(CHAT, geometry(layers=1, kv_heads=4), 1)
    gap = pool.lease(CODE, wide, 1)
    pool.lease(CODE, geometry(layers=1, kv_heads=44), 1)
    pool.free(gap, wide)
    assert pool.free_spans() == (Span(8, 32),)
    assert pool.lease(CHAT, geometry(layers=1, kv_heads=8), 2) == ((8,), (24,))
    pool.audit()


def test_a_refused_lease_leaves_no_claim(opened: Callable[[int], Allocator]) -> None:
    """Enough units are free, 128 and 66 apart; the first run of 70 finds room, the second not."""
    pool, small = opened(2 * EXTENT_UNITS), geometry(layers=1, kv_heads=1)
    first = pool.lease(CHAT, small, 1)
    pool.lease(CODE, small, 1)
    pool.free(first, small)
    pool.reserve(CODE, 60)
    with pytest.raises(CapacityError):
        pool.lease(CHAT, geometry(layers=2, kv_heads=35), 1)
    assert pool.free_spans() == (Span(0, 128), Span(130, 66))
    assert pool.lease(CODE, geometry(layers=1, kv_heads=64), 1) == ((0,),)
    pool.audit()


@pytest.mark.parametrize("rows", [4, 5, 100])
def test_too_many_rows_are_refused_whole(opened: Callable[[int], Allocator], rows: int) -> None:
    pool, shape = opened(3 * 32 + 31), geometry(layers=2, kv_heads=8)
    assert not pool.can_lease(shape, rows)
    with pytest.raises(CapacityError, match=f"chat wants {rows} rows of 32 units") as refused:
        pool.lease(CHAT, shape, rows)
    assert refused.value.reason == EXHAUSTED
    assert pool.free_units == pool.total_units
    assert len(pool.lease(CHAT, shape, 3)) == 3
    pool.audit()


def test_nothing_is_leased_for_no_rows(opened: Callable[[int], Allocator]) -> None:
    pool, shape = opened(0), geometry(layers=2, kv_heads=8)
    assert pool.can_lease(shape, 0)
    assert pool.lease(CHAT, shape, 0) == ()
    pool.free([], shape)
    pool.audit()


def test_freed_rows_are_leased_again(opened: Callable[[int], Allocator]) -> None:
    pool, shape = opened(256), geometry(layers=2, kv_heads=8)
    rows = pool.lease(CHAT, shape, 3)
    pool.free(rows[:1], shape)
    assert pool.lease(CHAT, shape, 1) == rows[:1]


def test_an_emptied_extent_is_nobodys(opened: Callable[[int], Allocator]) -> None:
    pool, shape = opened(2 * EXTENT_UNITS), geometry(layers=2, kv_heads=8)
    pool.free(pool.lease(CHAT, shape, 1), shape)
    assert pool.lease(CODE, shape, 1) == ((0, EXTENT_UNITS),)


def test_what_is_not_leased_cannot_be_freed(opened: Callable[[int], Allocator]) -> None:
    pool, shape = opened(256), geometry(layers=2, kv_heads=8)
    row, other = pool.lease(CHAT, shape, 2)
    for wrong in ([row, row], [row, (0, 1)], [(row[0],)], [(*row, other[0])], [row, (-1, 9999)]):
        with pytest.raises(InvariantError, match="KV pool: "):
            pool.free(wrong, shape)
    with pytest.raises(InvariantError, match="of 4 units is not leased"):
        pool.free([row], geometry(layers=2, kv_heads=2))
    assert pool.used(CHAT) == 64
    pool.audit()


def test_rows_pass_to_another_owner_without_moving(opened: Callable[[int], Allocator]) -> None:
    pool, shape = opened(256), geometry(layers=2, kv_heads=8)
    prefill, decode = Owner("chat", 1), Owner("chat", 2)
    rows = pool.lease(prefill, shape, 2)
    pool.retag(rows[:1], shape, decode)
    assert (pool.used(prefill), pool.used(decode)) == (32, 32)
    assert pool.reclaim(prefill) == 32
    pool.audit()
    pool.free(rows[:1], shape)
    assert pool.free_units == 256


def test_a_dead_epoch_loses_its_runs_and_no_other(opened: Callable[[int], Allocator]) -> None:
    pool, shape = opened(1024), geometry(layers=2, kv_heads=4)
    dead, alive = Owner("chat", 1), Owner("chat", 2)
    pool.reserve(dead, 10)
    rows = pool.lease(dead, shape, 2)
    kept = pool.lease(alive, shape, 2)
    assert pool.reclaim(dead) == 32
    assert pool.reclaim(dead) == 0
    assert (pool.owned_units, pool.reserved_units, pool.used(dead)) == (32, 10, 0)
    with pytest.raises(InvariantError):
        pool.free(rows, shape)
    pool.free(kept, shape)
    pool.audit()


def test_weights_take_the_high_end(opened: Callable[[int], Allocator]) -> None:
    pool = opened(4 * EXTENT_UNITS)
    assert pool.reserve(CHAT, EXTENT_UNITS + 2) == (Span(2 * 128 + 126, 2 + EXTENT_UNITS),)
    assert pool.reserve(CODE, 3) == (Span(2 * 128 + 123, 3),)
    assert (pool.free_units, pool.reserved_units) == (512 - 133, 133)
    assert pool.free_spans() == (Span(0, 512 - 133),)
    assert pool.lease(CHAT, geometry(layers=2, kv_heads=8), 1) == ((0, 128),)
    pool.audit()


def test_weights_fill_what_leases_left(opened: Callable[[int], Allocator]) -> None:
    pool = opened(2 * EXTENT_UNITS)
    pool.lease(CHAT, geometry(layers=2, kv_heads=2), 1)
    assert pool.reserve(CHAT, 248) == (Span(4, 124), Span(132, 124))
    assert pool.free_units == 0
    with pytest.raises(CapacityError, match="code wants to reserve 1 units, 0 of 256 are free"):
        pool.reserve(CODE, 1)
    assert pool.release(CHAT) == (Span(4, 124), Span(132, 124))
    assert pool.release(CHAT) == ()
    pool.audit()


def test_an_owner_may_reserve_more(opened: Callable[[int], Allocator]) -> None:
    pool = opened(EXTENT_UNITS)
    pool.reserve(CHAT, 10)
    pool.reserve(CHAT, 20)
    assert pool.reserve(CODE, 0) == ()
    assert pool.release(CHAT) == (Span(98, 30),)
    assert pool.free_units == EXTENT_UNITS


@pytest.mark.parametrize("kind", allocators(), ids=lambda kind: kind.kind)
@settings(deadline=None)
@given(total=totals(), calls=st.lists(steps(), max_size=40))
def test_every_unit_is_free_or_has_one_owner(
    kind: Callable[[int], Allocator], total: int, calls: list[tuple[object, ...]]
) -> None:
    run = Twins([kind(total)])
    for call in calls:
        run.perform(call)
        run.check()
    run.free_everything()
    run.check()


@settings(deadline=None, max_examples=300)
@given(total=totals(), calls=st.lists(steps(), min_size=5, max_size=60))
def test_both_allocators_give_the_same_ids(total: int, calls: list[tuple[object, ...]]) -> None:
    run = Twins([kind(total) for kind in allocators()])
    for call in calls:
        run.perform(call)
    run.check()
