"""Synthetic traffic: rates, burstiness, curves, and streams that leave each other alone."""

from collections import Counter

import numpy as np
import pytest

from mux_core.errors import SpecError
from mux_core.simulator.lengths import FixedLengths, LengthShape, lengths_of
from mux_core.simulator.workloads import (
    RateCurve,
    Stream,
    arrivals,
    day_curve,
    popularity_pairs,
    streams_of,
    swapped,
)
from planner_builders import an_llm, synthetic

SHORT = FixedLengths(32, 16)


def a_stream(model="m", rate=5.0, **changes):
    return Stream(model=model, rate=rate, lengths=SHORT, **changes)


def times(stream, *, until=2000.0, seed=1):
    return np.array([found.at for found in arrivals([stream], seed=seed, until=until)])


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0], ids=["regular", "poisson", "bursty"])
def test_gaps_have_the_rate_and_burstiness_asked_for(burstiness):
    gaps = np.diff(times(a_stream(burstiness=burstiness)))
    assert 1 / gaps.mean() == pytest.approx(5.0, rel=0.05)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(burstiness, rel=0.15)


def test_another_llm_changes_nobody_elses_requests():
    alone = list(arrivals([a_stream("a")], seed=7, until=200))
    both = list(arrivals([a_stream("b", 9.0), a_stream("a")], seed=7, until=200))
    assert [found for found in both if found.model == "a"] == alone
    assert [found.at for found in both] == sorted(found.at for found in both)
    assert list(arrivals([a_stream("a")], seed=8, until=200)) != alone


def test_llms_of_equal_rate_get_different_requests():
    one, other = (times(a_stream(name), until=100.0) for name in "ab")
    assert not np.isin(one, other).any()


def test_a_longer_run_begins_with_the_same_requests():
    stream = a_stream(curve=RateCurve((0.0, 50.0), (1.0, 3.0)))
    long = list(arrivals([stream], seed=7, until=3000))
    short = list(arrivals([stream], seed=7, until=100))
    assert long[: len(short)] == short
    assert len(long) > len(short) > 0


def test_the_rate_follows_its_curve_and_rests_where_it_is_zero():
    curve = RateCurve((0.0, 1000.0, 1500.0), (1.0, 0.0, 2.0))
    found = times(a_stream(curve=curve), until=2500.0)
    assert ((found >= 1000) & (found < 1500)).sum() == 0
    assert (found < 1000).sum() == pytest.approx(5000, rel=0.05)
    assert (found >= 1500).sum() == pytest.approx(10_000, rel=0.05)


def test_a_model_without_demand_sends_nothing():
    assert len(times(a_stream(rate=0.0))) == 0


def test_a_day_is_lowest_at_its_start_and_highest_at_noon():
    curve = day_curve(0.2, day=2400.0, days=2)
    assert curve.at(0.0) == pytest.approx(0.2, abs=0.01)
    assert curve.at(1200.0) == pytest.approx(1.0, abs=0.01)
    assert curve.at(2400.0 + 1200.0) == pytest.approx(1.0, abs=0.01)
    assert np.mean(curve.factors) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("starts", "factors", "said"),
    [((1.0,), (1.0,), "begins at"), ((0.0, 5.0, 5.0), (1.0, 2.0, 3.0), "do not ascend"),
     ((0.0,), (-1.0,), "at least 0"), ((0.0, 1.0), (1.0,), "one factor per start"),
     ((0.0,), (float("nan"),), "at least 0")],
)  # fmt: skip
def test_a_curve_that_makes_no_sense_is_refused(starts, factors, said):
    with pytest.raises(SpecError, match=said):
        RateCurve(starts, factors)


def test_popularity_swaps_at_a_time_within_llms_of_equal_cost():
    llms = synthetic(2.1, 1.0)
    pairs = popularity_pairs(llms)
    assert pairs["llm-0"] == "llm-11"
    assert pairs["llm-16"] == "llm-17"
    assert "llm-18" not in {*pairs, *pairs.values()}  # the only 65B has nobody of its cost
    streams = swapped(streams_of(llms, shape=LengthShape.FIXED), pairs, 300.0)
    by_half = {
        half: Counter(f.model for f in arrivals(streams, seed=1, until=600) if half(f.at))
        for half in (lambda at: at < 300, lambda at: at >= 300)
    }
    early, late = by_half.values()
    assert early["llm-0"] == pytest.approx(late["llm-11"], rel=0.1)
    assert late["llm-0"] < 0.05 * early["llm-0"]


@pytest.mark.parametrize(
    ("pairs", "at", "said"),
    [({"a": "ghost"}, 10.0, "ghost is not in the workload"), ({"a": "b"}, 0.0, "after the start"),
     ({"a": "idle"}, 10.0, "without demand")],
)  # fmt: skip
def test_a_swap_that_cannot_be_is_refused(pairs, at, said):
    streams = [a_stream("a"), a_stream("b"), a_stream("idle", 0.0)]
    with pytest.raises(SpecError, match=said):
        swapped(streams, pairs, at)


@pytest.mark.parametrize(
    ("prompt", "output"), [(161, 337), (100, 261), (778, 251), (128, 126)],
    ids=["sharegpt", "chatlmsys", "long prompts", "short"],
)  # fmt: skip
def test_lengths_have_the_means_asked_for_and_the_published_bounds(prompt, output):
    lengths = lengths_of(
        LengthShape.SHAREGPT, prompt=prompt, output=output, longest=4096, subject="model m"
    )
    prompts, outputs = lengths.draw(np.random.default_rng(1).random((100_000, 2)))
    assert prompts.mean() == pytest.approx(prompt, rel=0.02)
    assert outputs.mean() == pytest.approx(output, rel=0.02)
    assert prompts.min() >= 4
    assert prompts.max() <= 1024
    assert (prompts + outputs).max() <= 2048
    assert outputs.min() >= 1


def test_lengths_end_where_the_model_ends():
    lengths = lengths_of(LengthShape.SHAREGPT, prompt=60, output=80, longest=256, subject="m")
    prompts, outputs = lengths.draw(np.random.default_rng(1).random((10_000, 2)))
    assert (prompts + outputs).max() <= 256


def test_equal_lengths_are_whole_and_at_least_one():
    lengths = lengths_of(LengthShape.FIXED, prompt=160.6, output=0.2, longest=2048, subject="m")
    prompts, outputs = lengths.draw(np.zeros((2, 2)))
    assert (prompts.tolist(), outputs.tolist()) == ([161, 161], [1, 1])


@pytest.mark.parametrize(
    ("prompt", "output", "said"),
    [(3000, 100, "takes 2048 together"), (2, 100, "no ShareGPT-like lengths"),
     (1000, 1000, "no ShareGPT-like lengths")],
)  # fmt: skip
def test_means_that_no_lengths_have_are_refused(prompt, output, said):
    with pytest.raises(SpecError, match=said):
        lengths_of(LengthShape.SHAREGPT, prompt=prompt, output=output, longest=2048, subject="m")


def test_streams_state_the_demand_of_their_llms():
    stream, *_ = streams_of([an_llm("a", rate=3.0)], load=1.5, curve=day_curve(0.5))
    assert (stream.model, stream.rate, stream.burstiness) == ("a", 4.5, 1.0)
    assert stream.curve.at(43_200.0) == pytest.approx(1.0, abs=0.01)
