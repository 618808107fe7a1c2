"""The queue on a clock of its own: hours pass in no time."""

import asyncio

import pytest

from mux_core.specs import PoolKey
from mux_operator.work_queue import WorkQueue

A = PoolKey(namespace="ns", name="a")
B = PoolKey(namespace="ns", name="b")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue:
    return WorkQueue(clock, debounce_s=1.0, jitter=lambda: 0.5)


async def due(queue: WorkQueue) -> PoolKey | None:
    """The key that is due now, if one is."""
    taking = asyncio.create_task(queue.take())
    for _ in range(3):
        await asyncio.sleep(0)
    if taking.done():
        return taking.result()
    taking.cancel()
    return None


async def test_many_marks_make_one_look_after_the_debounce(queue: WorkQueue, clock: Clock) -> None:
    for _ in range(5):
        queue.mark(A)
    assert await due(queue) is None
    clock.now += 1.0
    assert await due(queue) == A
    assert await due(queue) is None


async def test_a_key_marked_while_it_is_worked_on_is_looked_at_again(
    queue: WorkQueue, clock: Clock
) -> None:
    queue.mark(A, after_s=0)
    assert await due(queue) == A
    queue.mark(A, after_s=0)
    assert await due(queue) is None
    queue.done(A)
    assert await due(queue) == A


async def test_a_failing_key_rests_longer_each_time_and_stops_no_other(
    queue: WorkQueue, clock: Clock
) -> None:
    pauses = []
    for _ in range(8):
        queue.mark(A, after_s=0)
        assert await due(queue) == A
        pauses.append(queue.failed(A))
        queue.mark(A)
        queue.mark(B, after_s=0)
        assert await due(queue) == B
        queue.done(B)
        assert await due(queue) is None
        clock.now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert await due(queue) == A
    queue.done(A)
    queue.mark(A, after_s=0)
    await due(queue)
    assert queue.failed(A) == 1


async def test_it_says_how_long_the_oldest_waits(queue: WorkQueue, clock: Clock) -> None:
    queue.mark(A, after_s=0)
    clock.now += 3
    assert (queue.depth, queue.oldest_s) == (1, 3)
