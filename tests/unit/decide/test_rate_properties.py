"""Arrivals per second from counters: no restart, late scrape or lost source looks like no load."""

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux_core.rates import STALE_S, TAU_S, RateState, Sample, is_stale, observed, rates, without
from mux_core.status import MeasuredDemand
from mux_core.units import ModelName

A = ModelName("a")
LIVE = frozenset({"u0", "u1", "gw"})


def sample(at: float, count: int, *, source: str = "u0", start: str = "s1") -> Sample:
    return Sample(source=source, start_id=start, at=at, arrivals={A: count})


def after(samples: Iterable[Sample]) -> RateState:
    state = RateState()
    for one in samples:
        state = observed(state, [one])
    return state


def rate(state: RateState, *, now: float, live: frozenset[str] = LIVE) -> float:
    return rates(state, now=now, live=live)[A].rate


def steady(seconds: int, per_s: int, *, first: int = 0, start: str = "s1") -> list[Sample]:
    return [sample(float(t), per_s * (t - first), start=start) for t in range(first, seconds + 1)]


def test_one_sample_sets_the_base_line_and_is_no_rate() -> None:
    state = after([sample(10.0, 5000)])
    assert rates(state, now=10.0, live=LIVE) == {}


@pytest.mark.parametrize("seconds", [2, 10, 30, 300])
def test_a_steady_load_is_its_rate_from_the_second_sample_on(seconds: int) -> None:
    assert rate(after(steady(seconds, 7)), now=seconds) == pytest.approx(7.0)


def test_sources_add_up() -> None:
    both = [s for t in range(60) for s in (sample(t, 3 * t), sample(t, 4 * t, source="gw"))]
    assert rate(after(both), now=59.0) == pytest.approx(7.0)


def test_uneven_scrapes_count_every_arrival_once() -> None:
    times = [0.0, 0.4, 3.0, 3.3, 9.0, 20.0, 21.0, 60.0]
    assert rate(after(sample(t, round(10 * t)) for t in times), now=60.0) == pytest.approx(10.0)


def test_a_late_scrape_is_not_less_demand() -> None:
    state = after(steady(60, 5))
    assert rate(state, now=120.0) == pytest.approx(5.0)


def test_a_process_that_started_again_loses_only_what_nobody_counted() -> None:
    """Two seconds of load were in counters that died with their process."""
    again = [sample(float(t), 5 * (t - 62), start="s2") for t in range(63, 93)]
    state = after([*steady(60, 5), *again])
    assert rate(state, now=92.0) == pytest.approx(5.0, rel=0.05)


def test_a_counter_that_fell_without_a_new_start_is_a_restart_too() -> None:
    state = after([*steady(60, 5), sample(61.0, 5)])
    assert rate(state, now=61.0) == pytest.approx(5.0)


def test_no_sample_never_makes_a_rate_negative_or_zero_while_load_lasts() -> None:
    flapping = [sample(float(t), 5, start=f"s{t}") for t in range(1, 61)]
    assert rate(after([sample(0.0, 0), *flapping]), now=60.0) == pytest.approx(5.0)


def test_a_source_that_left_fades_and_does_not_drop() -> None:
    state = after(steady(300, 5))
    gone = frozenset({"gw"})
    assert rate(state, now=300.0, live=gone) == pytest.approx(5.0, rel=0.01)
    assert rate(state, now=300.0 + TAU_S, live=gone) == pytest.approx(5.0 / math.e, rel=0.01)


def test_idle_models_come_down_to_nothing() -> None:
    idle = [sample(float(t), 300) for t in range(61, 361)]
    assert rate(after([*steady(60, 5), *idle]), now=360.0) < 0.01


def test_repeated_and_older_samples_change_nothing() -> None:
    state = after(steady(60, 5))
    again = observed(state, [sample(60.0, 300), sample(59.0, 295), sample(60.1, 301)])
    assert again == state


def test_a_rate_is_stale_after_five_minutes_without_a_word() -> None:
    said = MeasuredDemand(rate=5.0, source="RuntimeCounters", as_of=1000.0)
    assert STALE_S == 300.0
    assert not is_stale(said, now=1300.0)
    assert is_stale(said, now=1300.1)


def test_models_and_sources_that_are_gone_are_forgotten() -> None:
    state = after(steady(60, 5))
    assert without(state, now=61.0, models=frozenset()) == RateState()
    assert without(state, now=61.0, models=frozenset({A})) == state
    assert without(state, now=60.0 + 21 * TAU_S, models=frozenset({A})).streams == {}


def test_the_offered_rate_of_a_poisson_trace_is_measured_within_two_percent() -> None:
    """Three sources, scrapes at odd times, one restart; 900 requests/s offered."""
    rng = random.Random(7)
    offered = {"u0": 500.0, "u1": 300.0, "gw": 100.0}
    state = RateState()
    for source, per_s in offered.items():
        count, now, start = 0, 0.0, "s1"
        state = observed(state, [sample(now, count, source=source, start=start)])
        while now < 300.0:
            step = rng.uniform(0.5, 3.0)
            arrived = _poisson(rng, per_s * step)
            now += step
            restarted = source == "gw" and start == "s1" and now > 150.0
            count, start = (arrived, "s2") if restarted else (count + arrived, start)
            state = observed(state, [sample(now, count, source=source, start=start)])
    assert rate(state, now=303.0) == pytest.approx(900.0, rel=0.02)


def _poisson(rng: random.Random, mean: float) -> int:
    return max(0, round(rng.gauss(mean, math.sqrt(mean))))


@given(st.lists(st.tuples(st.floats(0.25, 30.0), st.integers(0, 500), st.booleans()), min_size=2,
                max_size=30))  # fmt: skip
def test_whatever_is_counted_the_rate_stays_between_the_extremes(
    steps: list[tuple[float, int, bool]],
) -> None:
    """A weighted mean of the rates between samples: never below the least nor above the most."""
    now, count, start = 0.0, 0, 0
    state = observed(RateState(), [sample(now, count, start="s0")])
    seen = []
    for seconds, arrived, restarts in steps:
        start += restarts
        count = arrived if restarts else count + arrived
        now += seconds
        state = observed(state, [sample(now, count, start=f"s{start}")])
        seen.append(arrived / seconds)
    assert min(seen) - 1e-6 <= rate(state, now=now) <= max(seen) * (1 + 1e-9) + 1e-6
