"""Demand from arrival counters: requests per second by model, as a value that grows by samples.

Every source (a unit, a gateway) counts arrivals since its process started; `start_id` tells one
process from the next. A rate is an exponentially weighted mean of arrivals with time constant
`TAU_S`, corrected for the time before the first sample, summed over sources:

    N  <- N * w + n * (tau / dt) * (1 - w)      w = exp(-dt / tau), n arrivals in dt seconds
    rate = sum over sources of N / (tau * (1 - exp(-age / tau)))

A source is evaluated at its own last sample, so a late scrape does not look like less demand. A
restarted process counts from zero and its first count is all new; a source never seen before only
sets its base line. A source that is gone fades with the same time constant.

Two time constants: the rate that is shown and that a jump is seen by has `TAU_S`; the one that a
fall must be seen by has `LASTING_S`, so that load which comes back soon finds everything as it was.
It also shows a slow rise, which may be chance by the shorter mean.

For Poisson arrivals at rate r such a mean of age a deviates by sqrt(r / window) with

    window = 2 tau * (1 - exp(-a / tau)) / (1 + exp(-a / tau))

seconds: a for a young one, two time constants in the end. `risen` and `fell` ask for more than
that, so that noise alone plans nothing.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mux_core.status import MeasuredDemand
from mux_core.tally import Tally
from mux_core.units import ModelName

TAU_S: Final = 30.0
LASTING_S: Final = 300.0
STALE_S: Final = 300.0
RISE: Final = 0.25
LASTING_RISE: Final = 0.1
FALL: Final = 0.4
"""A rate this part above, or below, the planned one plans nothing. What lasts may exceed it by
less: units are planned to nine tenths, and a little overload for long makes everybody wait."""
SURE: Final = 4.0
"""Standard deviations of chance that a change must exceed."""
CAUTION: Final = 2.0
"""Standard deviations of chance that are planned for beyond a jump: its mean still lags behind (by
a seventh after a minute), and what is planned for too little is overloaded until the lasting mean
has risen, some minutes later."""
DRAIN_S: Final = 120.0
"""What waits shall be gone in so many seconds. A unit planned for what arrives serves hardly more,
so a queue of a busy minute would stay for an hour; one shorter than half a minute plans nothing."""
FRESH_S: Final = 15.0
"""A queue that was not heard of for so long counts as gone: with its process, or its member."""
_SHORTEST_S: Final = 0.2
"""Samples closer than this to the last one wait for the next: their quotient is mostly noise."""
_FORGOTTEN: Final = 20 * TAU_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One source's counters at `at`, seconds of the Unix epoch; `waiting`: requests in queues."""

    source: str
    start_id: str
    at: float
    arrivals: Mapping[ModelName, int]
    waiting: Mapping[ModelName, int] = field(default_factory=dict)
    tallies: Mapping[ModelName, Tally] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """One model at one source; arrivals weighed by how long ago, by either time constant."""

    start_id: str
    count: int
    at: float
    weight: float = 0.0
    lasting: float = 0.0
    waiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateState:
    """All that is remembered between samples."""

    streams: Mapping[tuple[str, ModelName], _Stream] = field(default_factory=dict)
    since: Mapping[ModelName, float] = field(default_factory=dict)


def observed(state: RateState, samples: Iterable[Sample]) -> RateState:
    """`state` after `samples`; older or repeated ones change nothing."""
    streams = dict(state.streams)
    since = dict(state.since)
    for sample in samples:
        for model in sorted(sample.arrivals):
            key = (sample.source, model)
            before = streams.get(key)
            if before is not None and sample.at - before.at < _SHORTEST_S:
                continue
            since.setdefault(model, sample.at)
            streams[key] = _advanced(before, sample, model)
    return RateState(streams=streams, since=since)


def without(state: RateState, *, now: float, models: frozenset[ModelName]) -> RateState:
    """`state` without models that are gone and sources that faded long ago."""
    streams = {
        key: stream
        for key, stream in state.streams.items()
        if key[1] in models and now - stream.at < _FORGOTTEN
    }
    since = {model: at for model, at in state.since.items() if model in models}
    return replace(state, streams=streams, since=since)


def rates(
    state: RateState, *, now: float, live: frozenset[str]
) -> Mapping[ModelName, MeasuredDemand]:
    """Measured demand by model; `live` are the sources that still exist."""
    by_model: dict[ModelName, list[tuple[str, _Stream]]] = {}
    for (source, model), stream in sorted(state.streams.items()):
        by_model.setdefault(model, []).append((source, stream))
    result = {}
    for model, streams in by_model.items():
        as_of = max(stream.at for _, stream in streams)
        if as_of <= state.since[model]:
            continue
        result[model] = MeasuredDemand(
            rate=_rate(streams, TAU_S, since=state.since[model], now=now, live=live),
            lasting=_rate(streams, LASTING_S, since=state.since[model], now=now, live=live),
            source="RuntimeCounters", as_of=as_of, age_s=as_of - state.since[model],
            waiting=sum(stream.waiting for source, stream in streams
                        if source in live and now - stream.at <= FRESH_S),
        )  # fmt: skip
    return result


def risen(demand: MeasuredDemand, before: float) -> float | None:
    """What to plan for where that is more than `before` by more than hysteresis and chance
    explain: much at the moment, or a little for some minutes.
    """
    now = at_once(demand)
    if _exceeds(now, before, demand.age_s):
        return max(now + CAUTION * math.sqrt(now / (2 * TAU_S)), demand.lasting)
    if demand.age_s < LASTING_S:
        return None
    chance = _chance(demand.lasting + before, window(demand.age_s, LASTING_S))
    crept = demand.lasting - before > max(LASTING_RISE * before, chance)
    return demand.lasting if crept else None


def jumped(demand: MeasuredDemand, before: float) -> bool:
    """Arrives much more than `before` at the moment?"""
    return _exceeds(demand.rate, before, demand.age_s)


def fell(demand: MeasuredDemand, before: float) -> bool:
    """Has less than `before` arrived for some minutes? Who has not looked so long cannot say."""
    if demand.age_s < LASTING_S:
        return False
    chance = _chance(demand.lasting + before, window(demand.age_s, LASTING_S))
    most = max(at_once(demand), demand.lasting)
    return before - most > max(FALL * before, chance)


def at_once(demand: MeasuredDemand) -> float:
    """What arrives at the moment and what takes queues away: at most twice what arrives, else what
    cannot be served at all would ask for ever more.
    """
    return demand.rate + min(demand.waiting / DRAIN_S, demand.rate)


def _exceeds(rate: float, before: float, age_s: float) -> bool:
    return rate - before > max(RISE * before, _chance(rate + before, window(age_s, TAU_S)))


def window(age_s: float, tau: float) -> float:
    """Seconds of arrivals that a mean of so much age is worth."""
    kept = math.exp(-age_s / tau)
    return 2 * tau * (1 - kept) / (1 + kept)


def _chance(rates: float, window_s: float) -> float:
    return SURE * math.sqrt(rates / window_s) if window_s > 0 else math.inf


def is_stale(demand: MeasuredDemand, *, now: float) -> bool:
    return now - demand.as_of > STALE_S


def _advanced(before: _Stream | None, sample: Sample, model: ModelName) -> _Stream:
    count, waiting = sample.arrivals[model], sample.waiting.get(model, 0)
    if before is None:
        return _Stream(start_id=sample.start_id, count=count, at=sample.at, waiting=waiting)
    restarted = before.start_id != sample.start_id or count < before.count
    arrived = count if restarted else count - before.count
    elapsed = sample.at - before.at
    return _Stream(
        start_id=sample.start_id, count=count, at=sample.at,
        weight=_weighed(before.weight, arrived, elapsed, TAU_S),
        lasting=_weighed(before.lasting, arrived, elapsed, LASTING_S),
        waiting=waiting,
    )  # fmt: skip


def _weighed(before: float, arrived: int, elapsed: float, tau: float) -> float:
    kept = math.exp(-elapsed / tau)
    return before * kept + arrived * (tau / elapsed) * (1 - kept)


def _rate(
    streams: Iterable[tuple[str, _Stream]], tau: float, *, since: float, now: float,
    live: frozenset[str],
) -> float:  # fmt: skip
    return sum(_contribution(stream, tau, since=since, now=now, live=source in live)
               for source, stream in streams)  # fmt: skip


def _contribution(stream: _Stream, tau: float, *, since: float, now: float, live: bool) -> float:
    at = stream.at if live else max(now, stream.at)
    age = at - since
    if age <= 0:
        return 0.0
    weight = stream.weight if tau == TAU_S else stream.lasting
    return weight * math.exp(-(at - stream.at) / tau) / (tau * (1 - math.exp(-age / tau)))
