"""Measured demand: what counters of several processes add up to."""

from dataclasses import replace
from math import exp, sqrt
from random import Random
from statistics import pvariance

import pytest

from mux_core.rates import (
    CAUTION,
    DRAIN_S,
    FRESH_S,
    TAU_S,
    RateState,
    Sample,
    fell,
    is_stale,
    jumped,
    observed,
    rates,
    risen,
    window,
    without,
)
from mux_core.status import MeasuredDemand
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


def demand(measured: float, *, lasting: float | None = None, age_s: float = 3600) -> MeasuredDemand:
    """As measured, for so long."""
    return MeasuredDemand(rate=measured, lasting=measured if lasting is None else lasting,
                          source="RuntimeCounters", as_of=0.0, age_s=age_s)  # fmt: skip


@pytest.mark.parametrize(
    ("before", "measured", "moved"),
    [
        pytest.param(20.0, demand(24.0, lasting=20.0), "", id="a fifth more, but just now"),
        pytest.param(20.0, demand(24.0), "rose", id="a fifth more for some minutes"),
        pytest.param(20.0, demand(18.0, lasting=22.5), "rose", id="whatever the moment says"),
        pytest.param(20.0, demand(21.5), "", id="less than units have left"),
        pytest.param(20.0, demand(26.0), "rose", id="a third more"),
        pytest.param(20.0, demand(13.0), "", id="a third less"),
        pytest.param(20.0, demand(11.0), "fell", id="half"),
        pytest.param(20.0, demand(1.0, lasting=19.0), "", id="hardly any, but just now"),
        pytest.param(20.0, demand(30.0, lasting=19.0), "rose", id="a rise counts just now"),
        pytest.param(
            0.2, demand(0.5, lasting=0.2), "", id="at low rates chance alone makes twice as much"
        ),
        pytest.param(0.5, demand(0.6), "", id="or a fifth more for some minutes"),
        pytest.param(0.5, demand(0.9), "rose", id="not nearly twice as much"),
        pytest.param(0.2, demand(2.0), "rose", id="nor ten times as much"),
        pytest.param(20.0, demand(40.0, age_s=1), "", id="one second says little"),
        pytest.param(20.0, demand(0.0, age_s=1), "", id="neither way"),
        pytest.param(0.0, demand(0.0), "", id="nothing is nothing"),
        pytest.param(5.0, demand(9.0, age_s=0), "", id="no time says nothing"),
    ],
)
def test_a_rate_moves_beyond_hysteresis_and_chance(
    before: float, measured: MeasuredDemand, moved: str
) -> None:
    rose = risen(measured, before) is not None
    assert (rose, fell(measured, before)) == (moved == "rose", moved == "fell")


def test_a_rise_is_to_what_shows_it() -> None:
    jump = risen(demand(30.0, lasting=22.0), 20.0)
    assert jump == pytest.approx(30.0 + CAUTION * sqrt(30.0 / (2 * TAU_S))), "its mean still lags"
    assert risen(demand(30.0, lasting=40.0), 20.0) == 40.0
    assert risen(demand(18.0, lasting=23.0), 20.0) == 23.0


def test_what_waits_is_demand_too() -> None:
    """As much as goes away in two minutes, if that is more than hysteresis."""
    busy = demand(20.0)
    assert risen(replace(busy, waiting=int(DRAIN_S * 4)), 20.0) is None
    more = risen(replace(busy, waiting=int(DRAIN_S * 8)), 20.0)
    assert more == pytest.approx(28.0 + CAUTION * sqrt(28.0 / (2 * TAU_S)), rel=0.01)
    assert risen(replace(busy, waiting=10**6), 20.0) == risen(replace(busy, waiting=2400), 20.0)
    assert not jumped(replace(busy, waiting=10**6), 20.0), "what is shown is what arrives"


def test_who_has_a_queue_has_not_fallen() -> None:
    assert fell(demand(11.0), 20.0)
    assert not fell(replace(demand(11.0), waiting=int(DRAIN_S * 5)), 20.0)


def test_queues_of_live_sources_add_up() -> None:
    state = observed(RateState(), steady(10.0, seconds=60))
    for source, count in ("unit/u", 3), ("unit/v", 4):
        state = observed(state, [Sample(source=source, start_id="one", at=60.0, arrivals={A: 600},
                                        waiting={A: count})])  # fmt: skip
    both = frozenset({"unit/u", "unit/v"})
    assert rates(state, now=60.0, live=both)[A].waiting == 7
    assert rates(state, now=60.0, live=LIVE)[A].waiting == 3
    assert rates(state, now=61.0 + FRESH_S, live=both)[A].waiting == 0, "nobody heard of it since"


def test_a_mean_is_worth_its_age_and_in_the_end_two_time_constants() -> None:
    state = observed(RateState(), steady(5.0, seconds=61))
    assert rates(state, now=60.0, live=LIVE)[A].age_s == 60.0
    windows = [window(age, TAU_S) for age in (1.0, 30.0, 600.0)]
    assert windows == pytest.approx([1.0, 27.7, 2 * TAU_S], rel=0.01)


def test_a_lasting_rate_forgets_ten_times_as_slowly() -> None:
    state = observed(RateState(), steady(10.0, seconds=1200))
    ended = [sample("unit/u", 1199.0 + second, 11_990) for second in range(1, 61)]
    found = rates(observed(state, ended), now=1259.0, live=LIVE)[A]
    assert found.rate == pytest.approx(10.0 * exp(-2), rel=0.05)
    assert found.lasting == pytest.approx(10.0 * exp(-0.2), rel=0.05)


@pytest.mark.parametrize("offered", [0.3, 3.0, 30.0])
def test_the_window_is_how_far_chance_moves_a_mean(offered: float) -> None:
    """Its square deviation is rate / window, seen over many hours of Poisson arrivals."""
    draw, state, count, seen = Random(7), RateState(), 0, []
    for second in range(40_000):
        count += poisson(draw, offered)
        state = observed(state, [sample("unit/u", float(second), count)])
        if second > 1000:
            seen.append(rate(state, float(second)))
    assert pvariance(seen) == pytest.approx(offered / window(3600, TAU_S), rel=0.15)
