"""Waits before a prefill: what queueing theory says exactly, and how they grow."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux_core.estimator.waiting import Holding, Queue, Stream, for_kv, for_prefills


def holding(requests: float, size: float = 1.0, seconds: float = 10.0) -> Holding:
    return Holding(requests=requests, bytes=size, seconds=seconds)


def test_poisson_arrivals_to_prefills_of_varying_length_wait_as_in_m_m_1():
    # Arrivals of burstiness 1 and a service that varies by its mean: rho / (mu - lambda).
    stream = Stream(rate=5.0, prefill_s=0.1, burstiness=1.0)
    found = for_prefills([stream], busy=0.5)
    assert found.mean / found.chance == pytest.approx(0.1 / (1 - 0.5))


def test_prefills_that_take_all_the_time_make_waits_without_end():
    stream = Stream(rate=20.0, prefill_s=0.1, burstiness=1.0)
    assert for_prefills([stream], busy=1.0).mean == inf


def test_batched_prefills_shorten_the_queue_but_not_what_one_arrival_finds():
    stream = Stream(rate=2.0, prefill_s=0.1, burstiness=1.0)
    batched, single = for_prefills([stream], busy=0.1), for_prefills([stream], busy=0.2)
    assert batched.mean < single.mean
    assert batched.chance == pytest.approx(single.chance, rel=0.1)


def test_kv_with_room_for_twice_the_mean_lets_nobody_wait():
    (found,) = for_kv([holding(100)], room=200)
    assert found.mean < 1e-3


def test_kv_that_the_mean_fills_makes_waits_without_end():
    assert all(queue.mean == inf for queue in for_kv([holding(60), holding(60)], room=100))


def test_who_makes_the_kv_vary_waits_for_it():
    small, large = for_kv([holding(40, 1.0), holding(40, 20.0)], room=1000)
    assert large.mean > 100 * small.mean > 0


def test_a_batch_that_swings_more_waits_more():
    calm, wild = (Holding(requests=80, bytes=1.0, seconds=10.0, swing=by) for by in (1.0, 4.0))
    assert for_kv([wild], room=110)[0].mean > 3 * for_kv([calm], room=110)[0].mean > 0


@given(st.floats(1, 500), st.floats(1.02, 3), st.floats(1.001, 1.5))
def test_more_room_never_means_a_longer_wait(requests, room, more):
    (tight,) = for_kv([holding(requests)], requests * room)
    (wide,) = for_kv([holding(requests)], requests * room * more)
    assert wide.mean <= tight.mean
    assert wide.chance <= tight.chance


@given(st.floats(0.02, 1), st.floats(1e-4, 100))
def test_one_request_in_a_hundred_waits_longer_than_the_99th_percentile(chance, mean):
    queue = Queue(chance=chance, mean=mean)
    assert queue.within(queue.p99) == pytest.approx(0.99)
