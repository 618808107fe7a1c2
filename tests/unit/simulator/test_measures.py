"""Measures of runs that are written down request by request."""

import numpy as np
import pytest

from measure_builders import (
    A_BASE,
    NEVER,
    a_log,
    a_member,
    a_record,
    overloaded_log,
    steady_log,
)
from mux_core.errors import SpecError
from mux_core.simulator import measures
from mux_core.simulator.measures import SCALES, tally


def tally_of(logs, *, seconds=100.0, **changes):
    bases = dict.fromkeys(logs, A_BASE)
    return tally(a_record(logs, **changes), seconds=seconds, bases=bases)


def test_the_window_is_the_same_for_arrivals_and_completions():
    log = a_log(
        (5.0, 6.0, 12.0, 32, 2),  # before the window, ends inside it
        (10.0, 11.0, 12.0, 32, 2),  # on its first moment
        (109.0, 110.0, 111.0, 32, 2),  # arrives inside, ends in the tail
        (110.0, 111.0, 112.0, 32, 2),  # on its last moment, so outside
    )
    found = tally_of({"a": log}).models["a"]
    assert (found.offered, found.served, found.unfinished) == (2, 2, 0)


@pytest.mark.parametrize(
    ("first", "finished", "output", "scales"),
    [
        (0.1, 0.2, 11, SCALES),
        (0.1001, 0.2, 11, SCALES[1:]),
        (0.1, 0.1 + 0.2001, 11, SCALES[2:]),
        (1.0, 1.1, 11, SCALES[5:]),
        (1.0, 1.0, 1, SCALES[5:]),
        (2.01, 2.1, 11, ()),
        (0.1, NEVER, 11, ()),
        (NEVER, NEVER, 11, ()),
    ],
    ids=["on the base", "first token a little late", "tokens twice as slow", "ten times late",
         "one token", "too late for all", "unfinished", "never started"],
)  # fmt: skip
def test_a_request_meets_the_scales_its_worse_latency_allows(first, finished, output, scales):
    log = a_log((20.0, 20.0 + first, 20.0 + finished, 32, output))
    runs = [tally_of({"a": log})]
    met = [scale for scale in SCALES if measures.attainment(runs, scale) == 1.0]
    assert met == list(scales)


def test_the_end_to_end_rule_lets_late_first_tokens_pass():
    log = a_log((20.0, 20.19, 20.2, 32, 11))
    runs = [tally_of({"a": log})]
    assert measures.attainment(runs, 1) == 0.0
    assert measures.attainment(runs, 1, e2e=True) == 1.0


def test_attainment_is_of_requests_and_the_worst_is_of_an_llm():
    good = [(t, t + 0.1, t + 0.2, 32, 11) for t in np.arange(20.0, 50.0, 1.0)]
    logs = {"a": a_log(*good), "b": a_log((30.0, 33.0, 34.0, 32, 11)), "idle": a_log()}
    runs = [tally_of(logs)]
    assert measures.attainment(runs, 20) == pytest.approx(30 / 31)
    assert measures.attainment(runs, 20, model="b") == 0.0
    assert measures.attainment(runs, 20, model="idle") == 1.0
    assert measures.worst_attainment(runs, 20) == 0.0


def test_goodput_is_capped_by_what_was_offered():
    logs = {
        "half": overloaded_log(4.0, 2.0, 200.0),
        "whole": steady_log(3.0, 5.0, 200.0),
        # Ends more than it is offered: its backlog of before the window drains inside it.
        "drains": a_log(*[(1.0, 50.0, 60.0, 32, 2)] * 50, (20.0, 21.0, 22.0, 32, 2)),
        "idle": a_log(),
    }
    runs = [tally_of(logs)]
    assert measures.goodput(runs) == pytest.approx(2.0 + 3.0 + 0.01, rel=0.01)
    ratios = [measures.ratio(runs, name) for name in logs]
    assert ratios == pytest.approx([0.5, 1.0, 1.0, 1.0], abs=0.01)
    assert measures.worst_ratio(runs) == pytest.approx(0.5, abs=0.01)


def test_a_rare_llm_is_judged_over_all_runs_together():
    late = a_log((109.9, 110.5, 110.9, 32, 2))
    early = a_log((9.5, 9.9, 10.5, 32, 2))
    runs = [tally_of({"a": late}), tally_of({"a": early})]
    assert measures.ratio(runs[:1], "a") == 0.0
    assert measures.ratio(runs, "a") == 1.0


@pytest.mark.parametrize(
    ("log", "behind"),
    [(overloaded_log(4.0, 2.0, 200.0), True), (overloaded_log(4.0, 3.9, 200.0), False),
     (a_log(*[(t, t, t + 195.0, 32, 2) for t in range(10, 110, 20)]), True),
     (a_log(*[(t, t, t + 30.0, 32, 2) for t in range(10, 110, 20)]), False),
     (a_log(), False)],
    ids=["half served", "nearly all", "rare and starved", "rare and cut by the edge", "idle"],
)  # fmt: skip
def test_being_left_behind_is_told_from_chance(log, behind):
    assert measures.left_behind([tally_of({"a": log})], "a") is behind


def test_who_never_started_counts_with_the_time_waited():
    log = a_log((20.0, 21.0, 22.0, 32, 2), (20.0, NEVER, NEVER, 32, 2))
    spread = measures.latency([tally_of({"a": log}, until=200.0)], "a", "ttft")
    assert spread.mean == pytest.approx((1.0 + 180.0) / 2)


def test_latencies_are_of_all_runs_and_none_without_requests():
    logs = [a_log((20.0, 20.0 + t, 22.0, 32, 1)) for t in (0.1, 0.3)]
    runs = [tally_of({"a": log}) for log in logs]
    spread = measures.latency(runs, "a", "ttft")
    assert (spread.mean, spread.p50) == pytest.approx((0.2, 0.2))
    assert spread.p99 == pytest.approx(0.298)
    assert measures.latency(runs, "a", "tpot") is None


def test_kv_of_replicas_is_their_mean_and_the_largest():
    members = (a_member("a", kv_mean=0.2, kv_max=0.4), a_member("a", "u1", kv_mean=0.4, kv_max=0.9))
    found = tally_of({"a": a_log()}, members=members).models["a"]
    assert (found.kv_mean, found.kv_max) == pytest.approx((0.3, 0.9))


@pytest.mark.parametrize(
    ("rate", "capacity", "growing"),
    [(4.0, 2.0, True), (10.0, 9.0, True), (10.0, 10.5, False), (0.05, 0.06, False)],
    ids=["half served", "a tenth too little", "just enough", "rare"],
)
def test_a_growing_queue_is_told_from_a_steady_one(rate, capacity, growing):
    log = overloaded_log(rate, capacity, 1000.0)
    run = tally_of({"a": log}, seconds=600.0, warmup=60.0, until=1000.0)
    assert measures.grows([run], "a") is growing


def test_batches_that_fill_after_a_short_warm_up_are_no_growth():
    arrived = np.arange(0, 900.0, 0.1)
    left = arrived + 150.0
    log = a_log(*zip(arrived, left, left, left * 0 + 32, left * 0 + 1, strict=True))
    run = tally_of({"a": log}, seconds=600.0, warmup=10.0, until=900.0)
    assert run.models["a"].backlog[0] < 200 < run.models["a"].backlog[-1]
    assert not measures.grows([run], "a")


def test_chance_alone_is_no_growth():
    rng = np.random.default_rng(5)
    for _ in range(50):
        arrived = np.cumsum(rng.exponential(1.0, 900))
        left = arrived + rng.exponential(20.0, 900)
        log = a_log(*zip(arrived, left, left, left * 0 + 32, left * 0 + 1, strict=True))
        run = tally_of({"a": log}, seconds=600.0, warmup=60.0, until=900.0)
        assert not measures.grows([run], "a")


def test_littles_law_ties_requests_present_to_their_flow():
    run = tally_of({"a": steady_log(3.0, 5.0, 200.0)})
    found = measures.little([run], "a")
    assert found.present == pytest.approx(15.0, rel=0.01)
    assert found.flow == pytest.approx(15.0, rel=0.01)
    assert found.holds


def test_littles_law_fails_where_requests_are_stuck():
    run = tally_of({"a": a_log(*[(1.0, 2.0, NEVER, 32, 2)] * 20)})
    found = measures.little([run], "a")
    assert (found.present, found.flow) == (20.0, 0.0)
    assert not found.holds


def test_an_interrupted_run_counts_as_far_as_it_came():
    run = tally_of({"a": steady_log(2.0, 1.0, 60.0)}, until=60.0, interrupted=True)
    assert run.seconds == 50.0
    assert run.interrupted
    assert measures.offered([run], "a") == pytest.approx(2.0)


def test_a_run_that_ended_in_its_warm_up_measured_nothing():
    with pytest.raises(SpecError, match=r"stopped at 8.0 s, inside the warm-up of 10 s"):
        tally_of({"a": a_log()}, until=8.0)


def test_muxserves_own_figures():
    log = a_log((0.0, 1.0, 4.0, 32, 2), (0.0, 1.0, 8.0, 32, 2), (0.0, NEVER, NEVER, 32, 2))
    assert measures.makespan_throughput(log) == 0.25
    assert measures.makespan_throughput(a_log()) == 0.0
    tpt, rates = {"a": 2.0, "b": 1.0}, {"a": 3.9, "b": 0.9}
    assert measures.whole_rate_weighted(tpt, rates) == 3.0
    assert measures.request_weighted(tpt, {"a": 1, "b": 3}) == 1.25
