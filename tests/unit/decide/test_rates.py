"""Measured demand: what counters of several processes add up to."""

from random import Random
from statistics import pvariance

import pytest

from mux_core.rates import WINDOW_S, RateState, Sample, differs, is_stale, observed, rates, without
from mux_core.units import ModelName
from world_builders import poisson

A = ModelName("a")
LIVE = frozenset({"unit/u", "gateway/g"})


def sample(source: str, at: float, count: int, start: str = "one") -> Sample:
    return Sample(source=source, start_id=start, at=at, arrivals={A: count})


def steady(rate: float, *, seconds: int, source: str = "unit/u", begin: int = 0) -> list[Sample]:
    return [sample(source, float(t), int(rate * (t - begin)))
            for t in range(begin, begin + seconds)]  # fmt: skip


def rate(state: RateState, now: float, live: frozenset[str] = LIVE) -> float:
    return rates(state, now=now, live=live)[A].rate


@pytest.mark.parametrize("seconds", [5, 30, 120])
def test_a_steady_rate_is_met_from_the_first_seconds(seconds: int) -> None:
    state = observed(RateState(), steady(20.0, seconds=seconds))
    assert rate(state, seconds - 1) == pytest.approx(20.0, rel=0.02)


def test_one_sample_says_nothing() -> None:
    assert rates(observed(RateState(), [sample("unit/u", 0.0, 5)]), now=0.0, live=LIVE) == {}


def test_sources_add_up() -> None:
    state = observed(RateState(), steady(5.0, seconds=60))
    state = observed(state, steady(7.0, seconds=60, source="gateway/g"))
    assert rate(state, 59.0) == pytest.approx(12.0, rel=0.05)


def test_a_restart_counts_from_zero_and_loses_nothing() -> None:
    state = observed(RateState(), steady(10.0, seconds=60))
    state = observed(state, [sample("unit/u", 61.0, 20, start="two")])
    assert rate(state, 61.0) == pytest.approx(10.0, rel=0.02)


def test_a_process_that_was_there_before_us_counts_from_when_we_saw_it() -> None:
    state = observed(RateState(), [sample("unit/u", 0.0, 1_000_000)])
    state = observed(state, [sample("unit/u", 10.0, 1_000_020)])
    assert rate(state, 10.0) == pytest.approx(2.0)


def test_a_late_scrape_is_not_less_demand() -> None:
    state = observed(RateState(), steady(10.0, seconds=60))
    assert rate(state, 100.0) == rate(state, 59.0)


def test_a_source_that_is_gone_fades() -> None:
    state = observed(RateState(), steady(10.0, seconds=60))
    assert rate(state, 89.0, live=frozenset()) < 5.0
    assert rates(without(state, now=2000.0, models=frozenset({A})), now=2000.0, live=LIVE) == {}


def test_no_arrivals_is_zero_and_repeats_change_nothing() -> None:
    state = observed(RateState(), [sample("unit/u", float(t), 3) for t in range(20)])
    assert rate(state, 19.0) == 0.0
    assert observed(state, [sample("unit/u", 19.0, 3)]) == state


def test_old_demand_is_stale() -> None:
    state = observed(RateState(), steady(1.0, seconds=3))
    known = rates(state, now=2.0, live=LIVE)[A]
    assert not is_stale(known, now=200.0)
    assert is_stale(known, now=400.0)


def test_a_change_is_followed_within_two_time_constants() -> None:
    state = observed(RateState(), steady(2.0, seconds=120))
    last = 2 * 119
    state = observed(state, [sample("unit/u", 119.0 + t, last + 20 * t) for t in range(1, 91)])
    assert rate(state, 209.0) == pytest.approx(20.0, rel=0.06)


@pytest.mark.parametrize(
    ("before", "measured", "window_s", "different"),
    [
        pytest.param(20.0, 24.0, 60.0, False, id="a fifth more"),
        pytest.param(20.0, 26.0, 60.0, True, id="a third more"),
        pytest.param(20.0, 13.0, 60.0, False, id="a third less"),
        pytest.param(20.0, 11.0, 60.0, True, id="half"),
        pytest.param(0.2, 0.5, 60.0, False, id="at low rates chance alone makes twice as much"),
        pytest.param(0.2, 2.0, 60.0, True, id="not ten times as much"),
        pytest.param(20.0, 40.0, 1.0, False, id="one second says little"),
        pytest.param(0.0, 0.0, 60.0, False, id="nothing is nothing"),
    ],
)
def test_two_rates_differ_beyond_hysteresis_and_chance(
    before: float, measured: float, window_s: float, different: bool
) -> None:
    assert differs(measured, before, window_s=window_s) is different


def test_a_mean_is_worth_its_age_and_in_the_end_two_time_constants() -> None:
    windows = []
    for seconds in (2, 30, 600):
        state = observed(RateState(), steady(5.0, seconds=seconds))
        windows.append(rates(state, now=seconds - 1.0, live=LIVE)[A].window_s)
    assert windows == pytest.approx([1.0, 27.0, WINDOW_S], rel=0.03)


@pytest.mark.parametrize("offered", [0.3, 3.0, 30.0])
def test_the_window_is_how_far_chance_moves_a_mean(offered: float) -> None:
    """Its square deviation is rate / window, seen over many hours of Poisson arrivals."""
    draw, state, count, seen = Random(7), RateState(), 0, []
    for second in range(40_000):
        count += poisson(draw, offered)
        state = observed(state, [sample("unit/u", float(second), count)])
        if second > 1000:
            seen.append(rate(state, float(second)))
    assert pvariance(seen) == pytest.approx(offered / WINDOW_S, rel=0.15)
