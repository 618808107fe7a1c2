"""Who is asked next, who waits, and in which order waiting ends."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from gateway_builders import endpoint, table
from mux_core.routes import Endpoint
from mux_runtime.gateway.desk import RELEASE_STEP, Desk, DeskFull, HoldExpired, RouteGone

A, B, C = (endpoint(port, unit) for port, unit in ((1, "a"), (2, "b"), (3, "c")))


def desk_with(*endpoints: Endpoint, limit: int = 256) -> Desk:
    desk = Desk()
    desk.update(table(*endpoints, max_queued_per_model=limit))
    return desk


def soon() -> float:
    """A deadline that no test reaches."""
    return asyncio.get_running_loop().time() + 60.0


async def ask(desk: Desk, *, place: int = 0, avoid: Endpoint | None = None) -> str:
    """The unit that is to be asked now."""
    address = None if avoid is None else (avoid.host, avoid.port)
    return (await desk.endpoint("alpha", place, deadline=soon(), avoid=address)).unit


async def settled() -> None:
    """Lets every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


@contextlib.contextmanager
def busy(desk: Desk, endpoint: Endpoint, requests: int, model: str = "alpha") -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(requests):
            stack.enter_context(desk.outstanding(endpoint, model))
        yield


async def test_the_fewest_outstanding_requests_win() -> None:
    desk = desk_with(A, B, C)
    with busy(desk, A, 1), busy(desk, C, 2):
        assert await ask(desk) == "b"
        with busy(desk, B, 3):
            assert await ask(desk) == "a"
    assert await ask(desk) == "a", "all loads are given back"


async def test_requests_are_shared_by_weight() -> None:
    small, large = endpoint(1, "a", 1.0), endpoint(2, "b", 4.0)
    desk = desk_with(small, large)
    with busy(desk, large, 2):
        assert await ask(desk) == "b"
        with busy(desk, large, 2):
            assert await ask(desk) == "a"


async def test_requests_for_other_models_of_a_unit_do_not_count() -> None:
    desk = desk_with(A, B)
    with busy(desk, A, 9, model="beta"):
        assert await ask(desk) == "a"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param((1.0, 2.0), "b", id="the larger weight"),
        pytest.param((1.0, 1.0), "a", id="then the smaller id"),
    ],
)
async def test_ties_are_broken(weights: tuple[float, float], expected: str) -> None:
    desk = desk_with(*(endpoint(i, "ab"[i], weight) for i, weight in enumerate(weights)))
    assert await ask(desk) == expected


async def test_another_endpoint_is_preferred_for_a_retry() -> None:
    assert await ask(desk_with(A, B), avoid=A) == "b"
    assert await ask(desk_with(A), avoid=A) == "a", "the same one if there is no other"


async def test_a_paused_endpoint_comes_back_by_itself() -> None:
    desk = desk_with(A)
    desk.pause(A, "alpha")
    assert desk.must_wait("alpha", 0)
    assert await ask(desk) == "a"


async def test_a_pause_is_for_one_model() -> None:
    desk = desk_with(A)
    desk.pause(A, "beta")
    assert not desk.must_wait("alpha", 0)


async def test_a_new_table_ends_all_pauses() -> None:
    desk = desk_with(A)
    for _ in range(10):
        desk.pause(A, "alpha")
    desk.update(table(A, generation=2))
    assert not desk.must_wait("alpha", 0)


async def test_waiting_requests_go_in_the_order_of_their_places() -> None:
    desk = desk_with()
    order: list[int] = []

    async def request(place: int) -> None:
        await ask(desk, place=place)
        order.append(place)

    count = RELEASE_STEP + 5
    tasks = [asyncio.create_task(request(place)) for place in reversed(range(count))]
    await settled()
    assert desk.held("alpha") == count
    desk.update(table(A, generation=2))
    await settled()
    assert order == list(range(RELEASE_STEP)), "the rest is released a moment later"
    late = asyncio.create_task(request(999))
    await asyncio.gather(*tasks, late)
    assert order == [*range(count), 999], "a newcomer does not overtake those who wait"


async def test_waiting_ends_at_the_deadline_and_leaves_no_trace() -> None:
    desk = desk_with()
    with pytest.raises(HoldExpired):
        await desk.endpoint("alpha", 0, deadline=0.0)
    assert desk.held("alpha") == 0
    desk.update(table(A, generation=2))
    assert await ask(desk) == "a"


async def test_a_cancelled_request_leaves_no_trace() -> None:
    desk = desk_with()
    first, second = (asyncio.create_task(ask(desk, place=place)) for place in (0, 1))
    await settled()
    first.cancel()
    await settled()
    assert desk.held("alpha") == 1
    desk.update(table(A, generation=2))
    assert await second == "a"


async def test_a_model_that_leaves_takes_its_requests_along() -> None:
    desk = desk_with()
    waiting = asyncio.create_task(ask(desk))
    await settled()
    desk.update(table(generation=2, routes=()))
    with pytest.raises(RouteGone):
        await waiting


async def test_sent_away_requests_end_at_once_and_none_waits_again() -> None:
    desk = desk_with()
    waiting = asyncio.create_task(ask(desk))
    await settled()
    desk.send_away()
    for task in (waiting, asyncio.create_task(ask(desk))):
        with pytest.raises(HoldExpired):
            await task


@pytest.mark.parametrize("endpoints", [(), (A,)], ids=["holding", "serving"])
def test_the_number_without_a_first_byte_is_bounded(endpoints: tuple[Endpoint, ...]) -> None:
    desk = desk_with(*endpoints, limit=2)
    with desk.admitted("alpha") as first, desk.admitted("alpha") as second:
        assert first < second
        with pytest.raises(DeskFull) as full, desk.admitted("alpha"):
            pass
        assert full.value.limit == 2
        assert full.value.holding == (not endpoints)
    with desk.admitted("alpha"):
        pass
