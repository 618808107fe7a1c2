"""Builders for tests of measures: runs written down request by request."""

import numpy as np

from mux_core.simulator.latency_base import LENGTHS, LatencyBase
from mux_core.simulator.record import MemberLog, RequestLog, RunRecord

NEVER = float("nan")
EMPTY = np.empty((0, 2))
A_BASE = LatencyBase(prefill_s=(0.1,) * len(LENGTHS), decode_s=0.01)
"""0.1 s to the first token, 10 ms per token after it."""


def a_log(*requests):
    """(arrived, first, finished, prompt, output) each."""
    columns = np.array(requests, dtype=np.float64).reshape(len(requests), 5).T
    names = ("arrived", "first", "finished", "prompt", "output")
    return RequestLog(**dict(zip(names, columns, strict=True)))


def steady_log(rate, stay, until, *, output=11):
    """A request every 1/rate s, each in the system for `stay` s, first token after half of it."""
    arrived = np.arange(0, until, 1 / rate)
    ones = np.ones_like(arrived)
    finished = arrived + stay
    return RequestLog(
        arrived=arrived,
        first=arrived + stay / 2,
        finished=np.where(finished < until, finished, NEVER),
        prompt=ones * 32,
        output=ones * output,
    )


def overloaded_log(rate, capacity, until):
    """First come, first served at `capacity` per s; the queue grows when that is below `rate`."""
    arrived = np.arange(0, until, 1 / rate)
    ends = np.maximum(arrived, np.arange(len(arrived)) / capacity) + 1 / capacity
    ended = np.where(ends < until, ends, NEVER)
    ones = np.ones_like(arrived)
    return RequestLog(arrived=arrived, first=ended, finished=ended, prompt=ones * 32, output=ones)


def a_member(model, unit="u0", *, kv_mean=0.25, kv_max=0.5):
    return MemberLog(
        unit=unit, model=model, kv_mean=kv_mean, kv_max=kv_max, kv_samples=EMPTY,
        batch_samples=EMPTY, prefill_steps=1, decode_steps=1, batch_mean=1.0, busy=0.5,
        preempted=0,
    )  # fmt: skip


def a_record(logs, *, warmup=10.0, until=200.0, interrupted=False, members=(), **changes):
    return RunRecord(
        warmup=warmup, until=until, events=100, gpus_used=2.0, requests=logs, members=members,
        interrupted=interrupted, **changes,
    )  # fmt: skip
