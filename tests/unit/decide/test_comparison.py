"""Observed figures from counters: resets, silence and few requests invent nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux_core.comparison import (
    FEWEST,
    WINDOW_S,
    SeenState,
    attainment_error,
    figures,
    predicted_figures,
    seen,
)
from mux_core.planning import MemberEstimate
from mux_core.rates import STALE_S, Sample
from mux_core.status import Figures
from mux_core.tally import BUCKETS, Latencies, Tally, bucket, quantile
from mux_core.units import ModelName, UnitId

A = ModelName("a")
LIVE = frozenset({"unit/u0", "unit/u1", "gateway/g"})


def latencies(*values: float) -> Latencies:
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket(value)] += 1
    return Latencies(count=len(values), seconds=sum(values), by_bucket=tuple(counts))


def times(one: Latencies, count: int) -> Latencies:
    return Latencies(count=one.count * count, seconds=one.seconds * count,
                     by_bucket=tuple(n * count for n in one.by_bucket))  # fmt: skip


def sample(
    at: float, done: int, *, source: str = "unit/u0", start: str = "s1", ttft: float = 0.05,
    tpot: float = 0.01, kv: int | None = 1000,
) -> Sample:  # fmt: skip
    """`done` requests so far, each alike; half of them within their SLO."""
    tally = Tally(finished=done, ttft=times(latencies(ttft), done), judged=done, met=done // 2,
                  tpot=times(latencies(tpot), done), kv_used_bytes=kv)  # fmt: skip
    return Sample(source=source, start_id=start, at=at, arrivals={A: done}, tallies={A: tally})


def after(*samples: Sample, state: SeenState | None = None) -> SeenState:
    state = state or SeenState()
    for one in samples:
        state = seen(state, [one], live=LIVE, models=frozenset({A}), under={})
    return state


def steady(seconds: int, per_s: int, **how: object) -> list[Sample]:
    return [sample(float(t), per_s * t, **how) for t in range(seconds + 1)]  # type: ignore[arg-type]


def test_a_steady_load_is_seen_as_it_is() -> None:
    found = figures(after(*steady(60, 5)), now=60.0)[A]
    assert (found.rate, found.served) == (pytest.approx(5.0), pytest.approx(5.0))
    assert (found.ttft_mean_s, found.tpot_mean_s) == (pytest.approx(0.05), pytest.approx(0.01))
    assert found.ttft_p99_s == pytest.approx(0.05, rel=0.2)
    assert found.tpot_p99_s == pytest.approx(0.01, rel=0.2)
    assert found.attainment == pytest.approx(0.5, abs=0.02)
    assert (found.kv_bytes, found.as_of) == (1000, 60.0)


def test_the_slow_hundredth_is_the_99th_percentile() -> None:
    quick, slow = times(latencies(0.05), 97), times(latencies(2.0), 3)
    ttft = Latencies(count=100, seconds=quick.seconds + slow.seconds,
                     by_bucket=tuple(a + b for a, b in zip(
                         quick.by_bucket, slow.by_bucket, strict=True)))  # fmt: skip
    last = sample(10.0, 400)
    last = replace(last, tallies={A: replace(last.tallies[A], ttft=times(ttft, 4))})
    found = figures(after(sample(0.0, 0), last), now=10.0)[A]
    assert found.ttft_p99_s == pytest.approx(2.0, rel=0.2)
    assert found.ttft_mean_s == pytest.approx((97 * 0.05 + 3 * 2.0) / 100)


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param([sample(10.0, 50_000)], id="what was counted before we looked"),
        pytest.param(steady(int(FEWEST) // 2, 1), id="too few requests"),
        pytest.param(steady(60, 0), id="nobody asks"),
    ],
)
def test_what_cannot_be_known_is_not_there(samples: list[Sample]) -> None:
    assert figures(after(*samples), now=samples[-1].at) == {}


def test_a_percentile_needs_more_requests_than_a_mean() -> None:
    found = figures(after(*steady(30, 2)), now=30.0)[A]
    assert found.ttft_mean_s is not None
    assert found.ttft_p99_s is None


def test_without_an_slo_there_is_no_attainment_and_without_buckets_no_percentile() -> None:
    bare = [replace(s, tallies={A: replace(t, judged=0, met=0, ttft=replace(
        t.ttft, by_bucket=()))}) for s in steady(60, 5) for t in s.tallies.values()]  # fmt: skip
    found = figures(after(*bare), now=60.0)[A]
    assert (found.attainment, found.ttft_p99_s) == (None, None)
    assert found.ttft_mean_s == pytest.approx(0.05)


def test_a_gateway_holds_no_kv_and_counts_its_own_arrivals() -> None:
    unit = [replace(s, arrivals={A: 0}) for s in steady(60, 5)]
    gateway = [replace(s, arrivals={A: 5 * i}, tallies={A: Tally(judged=5 * i, met=5 * i)})
               for i, s in enumerate(steady(60, 5, source="gateway/g", kv=None))]  # fmt: skip
    both = [one for pair in zip(unit, gateway, strict=True) for one in pair]
    found = figures(after(*both), now=60.0)[A]
    assert (found.rate, found.served) == (pytest.approx(5.0), pytest.approx(5.0))
    assert (found.attainment, found.kv_bytes) == (pytest.approx(0.75, abs=0.02), 1000)


def test_replicas_add_up() -> None:
    second = steady(60, 5, source="unit/u1", ttft=0.15, kv=500)
    both = [one for pair in zip(steady(60, 5), second, strict=True) for one in pair]
    found = figures(after(*both), now=60.0)[A]
    assert found.served == pytest.approx(10.0)
    assert found.ttft_mean_s == pytest.approx(0.10)
    assert found.kv_bytes == 1500


def test_a_restart_counts_from_zero_and_all_it_counted_is_new() -> None:
    again = [sample(61.0 + t, 5 * t, start="s2", ttft=0.05) for t in range(30)]
    found = figures(after(*steady(60, 5), *again), now=90.0)[A]
    assert found.ttft_mean_s == pytest.approx(0.05)
    assert found.served == pytest.approx(5.0, rel=0.05)


def test_another_process_that_counted_more_is_another_process() -> None:
    other = sample(61.0, 310, start="s2")
    found = figures(after(*steady(60, 5), other), now=61.0)[A]
    assert found.served == pytest.approx((300 + 310) / 61, rel=0.15)


def test_a_member_that_left_and_came_back_counts_from_zero_too() -> None:
    again = [sample(61.0 + t, 5 * t) for t in range(30)]
    found = figures(after(*steady(60, 5), *again), now=90.0)[A]
    assert found.served == pytest.approx(5.0, rel=0.05)


def test_what_went_away_counts_no_more() -> None:
    state = after(*steady(60, 5))
    assert (
        figures(seen(state, [], live=frozenset(), models=frozenset({A}), under={}), now=60.0) == {}
    )
    assert figures(seen(state, [], live=LIVE, models=frozenset(), under={}), now=60.0) == {}
    assert figures(state, now=60.0 + STALE_S + 1) == {}
    unknown = seen(SeenState(), steady(60, 5), live=frozenset(), models=frozenset({A}), under={})
    assert unknown == SeenState()


def test_idle_time_before_a_load_does_not_thin_it() -> None:
    idle = [sample(float(t), 300) for t in range(600)]
    load = [sample(600.0 + t, 300 + 5 * t) for t in range(1, 31)]
    found = figures(after(*idle, *load), now=630.0)[A]
    assert found.served == pytest.approx(5.0, rel=0.05)


def test_a_load_that_ended_fades() -> None:
    quiet = [sample(60.0 + t, 300) for t in range(1, int(6 * WINDOW_S))]
    assert figures(after(*steady(60, 5), *quiet), now=60.0 + 6 * WINDOW_S) == {}


STEP = st.tuples(st.floats(0.0, 400.0), st.integers(0, 200), st.floats(0.001, 200.0), st.booleans())


@given(st.lists(STEP, min_size=1, max_size=30), st.integers(0, 1_000_000))
def test_no_history_of_restarts_gives_absurd_figures(
    steps: list[tuple[float, int, float, bool]], first: int
) -> None:
    """Requests of any number and latency, pauses of any length, restarts at any time."""
    at, start, done, values = 0.0, 0, first, []
    state = after(sample(at, first, start="0"))
    ttft = times(latencies(0.05), first)
    for pause, new, latency, restarts in steps:
        if restarts:
            start, done, ttft = start + 1, 0, Latencies(by_bucket=(0,) * BUCKETS)
        at, done = at + pause, done + new
        values.append(latency)
        more = times(latencies(latency), new)
        ttft = Latencies(count=done, seconds=ttft.seconds + more.seconds, by_bucket=tuple(
            a + b for a, b in zip(ttft.by_bucket, more.by_bucket, strict=True)))  # fmt: skip
        told = sample(at, done, start=str(start))
        told = replace(told, tallies={A: replace(told.tallies[A], ttft=ttft)})
        state = after(told, state=state)
    found = figures(state, now=at).get(A)
    if found is None:
        return
    assert found.served is not None
    assert found.served >= 0
    assert 0 <= (found.attainment or 0) <= 1
    for value in (found.ttft_mean_s, found.ttft_p99_s):
        if value is not None:
            assert min(values) / 1.21 <= value <= max(values) * 1.21


@given(st.lists(st.floats(0.001, 300.0), min_size=1, max_size=300))
def test_a_quantile_is_within_its_bucket(values: list[float]) -> None:
    exact = sorted(values)[max(0, -(-len(values) * 99 // 100) - 1)]
    found = quantile(latencies(*values).by_bucket, 0.99)
    assert found is not None
    assert exact / 1.2001 <= found <= exact * 1.2001


def test_nothing_counted_has_no_quantile() -> None:
    assert quantile([0] * BUCKETS, 0.99) is None


def test_a_prediction_without_end_or_place_is_not_there() -> None:
    endless = MemberEstimate(offered=9.0, served=4.0, replicas=1, ttft_mean_s=float("inf"))
    found = predicted_figures(endless)
    assert found is not None
    assert (found.rate, found.ttft_mean_s) == (9.0, None)
    assert predicted_figures(replace(endless, replicas=0)) is None
    assert predicted_figures(None) is None


@pytest.mark.parametrize(
    ("arrives", "met", "error"),
    [(2.0, 0.9, -0.05), (2.5, 0.9, -0.05), (3.0, 0.9, None), (1.0, 0.9, None), (2.0, None, None)],
)
def test_an_error_needs_both_sides_at_about_one_rate(
    arrives: float, met: float | None, error: float | None
) -> None:
    predicted = Figures(rate=2.0, attainment=0.95)
    found = attainment_error(predicted, Figures(rate=arrives, attainment=met))
    assert found == (None if error is None else pytest.approx(error))
    assert attainment_error(None, Figures(rate=2.0, attainment=1.0)) is None


def test_what_was_seen_under_another_spec_is_forgotten() -> None:
    """A prediction is of the specs in force."""
    state = after(*steady(60, 5))
    old, new = {A: ((UnitId("u0"), 1),)}, {A: ((UnitId("u0"), 2),)}
    other = {ModelName("b"): ((UnitId("u1"), 7),)}
    later = replace(state, under=old)
    same = seen(later, [sample(61.0, 305)], live=LIVE, models=frozenset({A}), under=old | other)
    assert figures(same, now=61.0), "another unit's spec is not this one's"
    changed = seen(later, [sample(61.0, 305)], live=LIVE, models=frozenset({A}), under=new)
    assert figures(later, now=61.0)
    assert figures(changed, now=61.0) == {}
    again = seen(changed, [sample(t, 5 * int(t)) for t in (80.0, 100.0)], live=LIVE,
                 models=frozenset({A}), under=new)  # fmt: skip
    assert figures(again, now=100.0)[A].rate == pytest.approx(5.0)
