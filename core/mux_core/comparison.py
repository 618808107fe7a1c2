"""What models are seen to get, in the figures in which a plan predicts it.

Every source counts since its process started. All counters of one source and model are kept as
exponentially weighted sums with one time constant, so that a mean is the quotient of two of them
and a percentile is read from weighted counts:

    S  <- S * w + n * (tau / dt) * (1 - w)      w = exp(-dt / tau), n counted in dt seconds

A restarted process counts from zero and all it counted is new; a source never seen before only sets
its base line. Sources that are gone count no more. A figure that too few requests stand behind is
not there.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mux_core.planning import MemberEstimate
from mux_core.rates import STALE_S, Sample
from mux_core.status import Figures
from mux_core.tally import BUCKETS, Tally, quantile
from mux_core.units import ModelName, UnitId
from mux_core.unitspec import UnitSpec

WINDOW_S: Final = 120.0
FEWEST: Final = 20.0
"""Requests, weighted by age, that a rate or mean needs; of Poisson arrivals it is 22 % off then."""
FEWEST_P99: Final = 100.0
NEAR: Final = 0.3
"""A prediction counts as tested while arrivals are at most this part off those it was made for."""
_SHORTEST_S: Final = 0.2
_HEAD: Final = 8
_TTFT: Final = slice(_HEAD, _HEAD + BUCKETS)
_TPOT: Final = slice(_HEAD + BUCKETS, _HEAD + 2 * BUCKETS)
_LENGTH: Final = _HEAD + 2 * BUCKETS

Row = NDArray[np.float64]
"""All counters of a source and model: a head, then the buckets of both latencies if there are."""
Specs = Mapping[ModelName, tuple[tuple[UnitId, int], ...]]
"""The units of each model, and the generations of their specs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stream:
    """One model at one source: counts at the last sample, and the same weighted by age.

    It begins with its first request: a load is not thinned by the idle time before it. `kv` are
    byte seconds, `held` whether there was any KV to look at.
    """

    start_id: str
    since: float
    at: float
    counts: Row
    sums: Row
    kv: float = 0.0
    held: bool = False

    @property
    def window_s(self) -> float:
        """Seconds that the weighted sums are worth."""
        return WINDOW_S * (1 - math.exp(-(self.at - self.since) / WINDOW_S))

    @property
    def is_quiet(self) -> bool:
        """Whether so little is left of what was counted that it begins anew."""
        return bool(self.sums[0] + self.sums[1] < 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenState:
    """All that is remembered between samples, and the specs that each model was seen under."""

    streams: Mapping[tuple[str, ModelName], _Stream] = field(default_factory=dict)
    under: Specs = field(default_factory=dict)


def seen(
    state: SeenState,
    samples: Iterable[Sample],
    *,
    live: frozenset[str],
    models: frozenset[ModelName],
    under: Specs,
) -> SeenState:
    """`state` after `samples`; older ones, and sources and models that are gone, change nothing.

    What was seen of a model under other specs is forgotten: a prediction is of those in force.
    """
    same = {model for model in models if under.get(model) == state.under.get(model)}
    streams = {key: stream for key, stream in state.streams.items()
               if key[0] in live and key[1] in same}  # fmt: skip
    for sample in samples:
        for model, tally in sorted(sample.tallies.items()):
            key = (sample.source, model)
            before = streams.get(key)
            known = key[0] in live and model in models
            if known and (before is None or sample.at - before.at >= _SHORTEST_S):
                streams[key] = _advanced(before, sample, model, tally)
    return SeenState(streams=streams, under=under)


def specs_in_force(units: Iterable[UnitSpec]) -> Specs:
    """What each model runs under."""
    found: dict[ModelName, tuple[tuple[UnitId, int], ...]] = {}
    for unit in sorted(units, key=lambda unit: unit.unit):
        for member in unit.members:
            spec = UnitId(unit.unit), unit.generation
            model = ModelName(member.model)
            found[model] = (*found.get(model, ()), spec)
    return found


def figures(state: SeenState, *, now: float) -> dict[ModelName, Figures]:
    """What each model was seen to get; one of which too little is known is not there."""
    by_model: dict[ModelName, list[_Stream]] = {}
    for (_, model), stream in sorted(state.streams.items()):
        if stream.at > stream.since and now - stream.at <= STALE_S:
            by_model.setdefault(model, []).append(stream)
    found = {model: _figures(streams) for model, streams in by_model.items()}
    return {model: made for model, made in found.items() if made is not None}


def predicted_figures(found: MemberEstimate | None) -> Figures | None:
    """What a plan predicts of a model; None where the plan has no place for it."""
    if found is None or found.replicas == 0:
        return None
    return Figures(
        rate=found.offered, served=found.served, ttft_mean_s=_finite(found.ttft_mean_s),
        ttft_p99_s=_finite(found.ttft_p99_s), tpot_mean_s=_finite(found.tpot_mean_s),
        tpot_p99_s=_finite(found.tpot_p99_s), attainment=found.attainment,
        kv_bytes=found.kv_bytes, costs=found.costs,
    )  # fmt: skip


def attainment_error(predicted: Figures | None, observed: Figures | None) -> float | None:
    """Observed minus predicted attainment; None unless both are known of about one rate."""
    if predicted is None or observed is None or not is_tested(predicted, observed):
        return None
    if predicted.attainment is None or observed.attainment is None:
        return None
    return observed.attainment - predicted.attainment


def is_tested(predicted: Figures, observed: Figures) -> bool:
    """Whether about as much arrives as the prediction was made for."""
    if predicted.rate is None or observed.rate is None:
        return False
    return abs(observed.rate - predicted.rate) <= NEAR * predicted.rate


def _figures(streams: Sequence[_Stream]) -> Figures | None:
    sums = np.zeros(_LENGTH)
    for stream in streams:
        sums[: len(stream.sums)] += stream.sums
    arrived, finished, judged, met, ttft_count, ttft_s, tpot_count, tpot_s = sums[:_HEAD].tolist()
    if max(arrived, finished) < FEWEST:
        return None
    kv = [stream.kv / stream.window_s for stream in streams if stream.held]
    return Figures(
        as_of=max(stream.at for stream in streams),
        rate=_rate(streams, 0) if arrived >= FEWEST else None,
        served=_rate(streams, 1),
        ttft_mean_s=_mean(ttft_s, ttft_count), ttft_p99_s=_p99(sums[_TTFT].tolist()),
        tpot_mean_s=_mean(tpot_s, tpot_count), tpot_p99_s=_p99(sums[_TPOT].tolist()),
        attainment=_mean(met, judged), kv_bytes=round(sum(kv)) if kv else None,
    )  # fmt: skip


def _rate(streams: Sequence[_Stream], column: int) -> float:
    return float(sum(stream.sums[column] / stream.window_s for stream in streams))


def _mean(total: float, count: float) -> float | None:
    return total / count if count >= FEWEST else None


def _p99(counts: Sequence[float]) -> float | None:
    return quantile(counts, 0.99) if sum(counts) >= FEWEST_P99 else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _counts(arrived: int, tally: Tally) -> Row:
    """All counters in a row, as `_figures` takes them apart."""
    ttft, tpot = tally.ttft, tally.tpot
    head = (arrived, tally.finished, tally.judged, tally.met, ttft.count, ttft.seconds, tpot.count,
            tpot.seconds)  # fmt: skip
    # A gateway counts no latencies, and another release may count them by other edges.
    known = len(ttft.by_bucket) == len(tpot.by_bucket) == BUCKETS
    return np.array((*head, *ttft.by_bucket, *tpot.by_bucket) if known else head, dtype=np.float64)


def _advanced(before: _Stream | None, sample: Sample, model: ModelName, tally: Tally) -> _Stream:
    counts = _counts(sample.arrivals.get(model, 0), tally)
    if (
        before is None
        or len(counts) != len(before.counts)
        or (before.is_quiet and np.array_equal(counts, before.counts))
    ):
        return _Stream(start_id=sample.start_id, since=sample.at, at=sample.at, counts=counts,
                       sums=np.zeros(len(counts)))  # fmt: skip
    restarted = before.start_id != sample.start_id or bool((counts < before.counts).any())
    elapsed = sample.at - before.at
    kept = math.exp(-elapsed / WINDOW_S)
    new = WINDOW_S * (1 - kept)
    held = tally.kv_used_bytes
    counted = counts if restarted else counts - before.counts
    return _Stream(
        start_id=sample.start_id, since=before.since, at=sample.at, counts=counts,
        sums=before.sums * kept + counted * (new / elapsed),
        kv=before.kv * kept + (held or 0) * new, held=held is not None,
    )  # fmt: skip
