"""Measured demand: what counters of several processes add up to."""

import pytest

from mux_core.rates import RateState, Sample, is_stale, observed, rates, without
from mux_core.units import ModelName

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
