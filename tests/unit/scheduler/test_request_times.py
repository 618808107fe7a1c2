"""Where a request's time goes: queue, prefill and decode, by a clock that the test moves."""

import asyncio

from mux_core.engine import Phase
from mux_core.tally import bucket
from mux_runtime.openai import buckets
from mux_runtime.scheduler.durations import STEP_EDGES, Durations
from scheduler_builders import ToyScheduler, ask, collect, spec, unit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def gated(clock: Clock) -> ToyScheduler:
    """A member both of whose hosts wait in each step until they are let pass."""
    box = unit(clock=clock)
    box.starter.gated |= {("a", Phase.PREFILL), ("a", Phase.DECODE)}
    box.scheduler.add_member(spec("a"))
    await box.serving("a")
    return box


def times(box: ToyScheduler) -> tuple[tuple[float, float], ...]:
    """Sum and count of queue, prefill and decode time."""
    counters = box.scheduler.members["a"].counters
    return tuple((seen.total, seen.buckets()[-1][1])
                 for seen in (counters.queued, counters.prefilled, counters.decoded))  # fmt: skip


async def test_each_stage_gets_its_own_time() -> None:
    clock = Clock()
    box = await gated(clock)
    prefill, decode = box.host("a", Phase.PREFILL), box.host("a", Phase.DECODE)
    first = asyncio.create_task(collect(box, ask("r1", count=2)))
    await prefill.stepping(1)
    clock.now = 102
    second = asyncio.create_task(collect(box, ask("r2", count=2)))
    await asyncio.sleep(0)
    clock.now = 105
    prefill.let_one_pass()
    await decode.stepping(1)
    await prefill.stepping(2)
    clock.now = 109
    prefill.let_one_pass()
    async with asyncio.timeout(5):
        while not box.scheduler.members["a"].crossing:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    clock.now = 112
    decode.let_one_pass()
    await first
    assert times(box) == ((0, 1), (5, 1), (7, 1))
    await decode.stepping(2)
    clock.now = 120
    decode.let_one_pass()
    await second
    assert times(box) == ((0 + 3, 2), (5 + 4, 2), (7 + 11, 2))
    counters = box.scheduler.members["a"].counters
    for counts, seconds in ((counters.ttft_counts, (5, 7)), (counters.tpot_counts, (7, 11))):
        assert [i for i, count in enumerate(counts) if count] == [bucket(s) for s in seconds]
    await box.scheduler.close()


async def test_a_request_set_back_keeps_its_first_grant() -> None:
    clock = Clock()
    box = await gated(clock)
    answer = asyncio.create_task(collect(box, ask("r", count=1)))
    await box.host("a", Phase.PREFILL).stepping(1)
    clock.now = 104
    died = box.host("a", Phase.PREFILL)
    died.die()
    async with asyncio.timeout(5):
        while box.host("a", Phase.PREFILL) is died:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await box.host("a", Phase.PREFILL).stepping(1)
    clock.now = 106
    box.host("a", Phase.PREFILL).let_one_pass()
    await answer
    assert times(box) == ((0, 1), (6, 1), (0, 1))
    await box.scheduler.close()


async def test_a_cancelled_request_is_not_measured() -> None:
    box = await gated(Clock())
    stream = box.scheduler.submit(ask("r"))
    prefill = box.host("a", Phase.PREFILL)
    await prefill.stepping(1)
    await stream.aclose()
    prefill.let_one_pass()
    await box.idle()
    assert times(box) == ((0, 0), (0, 0), (0, 0))
    await box.scheduler.close()


def test_edges_are_written_as_prometheus_client_writes_them() -> None:
    names = [name for name, _ in Durations(buckets.REQUEST).buckets()]
    assert names == [*(str(edge) for edge in buckets.REQUEST), "+Inf"]
    assert names[3] == "1.0"
    assert Durations(STEP_EDGES).buckets()[1][0] == "0.0025"
