"""The figures that are compared: of a log of requests, and of what an estimator says."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mux_core.estimator.unit import MemberOutcome
from mux_core.simulator.record import Column, RequestLog
from mux_core.units import ModelName


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A latency over requests, in s; None where it is not known."""

    mean: float | None = None
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One model: requests/s arrived and done in the window, latencies, part of the unit's KV."""

    offered: float
    served: float
    ttft: Spread
    tpot: Spread
    kv: float | None = None
    requests: int = 0
    unfinished: int = 0

    @property
    def goodput(self) -> float:
        return min(self.offered, self.served)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The same load three times: what was predicted, what a simulation gave, what was seen.

    `load_average`: of the machine, at the end; more than its cores means that others ran too.
    `slower`: times as long as when costs were measured that it took for a fixed piece of work, by
    which the costs were multiplied; None where that was not timed.
    """

    load: float
    seed: int
    load_average: float
    slower: float | None
    predicted: Mapping[ModelName, Figures]
    simulated: Mapping[ModelName, Figures]
    observed: Mapping[ModelName, Figures]


def figures_of(log: RequestLog, *, begin: float, end: float, kv: float | None) -> Figures:
    """Of requests that arrived in a window; completions are counted in it."""
    inside = (log.arrived >= begin) & (log.arrived < end)
    arrived, first, finished = (x[inside] for x in (log.arrived, log.first, log.finished))
    output = log.output[inside]
    several = output > 1
    done = (log.finished >= begin) & (log.finished < end)
    return Figures(
        offered=len(arrived) / (end - begin),
        served=float(done.sum()) / (end - begin),
        ttft=_spread(first - arrived),
        tpot=_spread((finished - first)[several] / (output[several] - 1)),
        kv=kv,
        requests=len(arrived),
        unfinished=int(np.isnan(finished).sum()),
    )


def predicted_figures(found: MemberOutcome, *, offered: float, memory: float) -> Figures:
    """`memory`: bytes of KV the unit has."""
    return Figures(
        offered=offered, served=found.served,
        ttft=Spread(mean=found.ttft_mean_s, p99=found.ttft_p99_s),
        tpot=Spread(mean=found.tpot_mean_s, p99=found.tpot_p99_s),
        kv=found.held / memory if found.held is not None and memory > 0 else None,
    )  # fmt: skip


def _spread(values: Column) -> Spread:
    known = values[~np.isnan(values)]
    if not len(known):
        return Spread()
    p50, p99 = np.percentile(known, (50, 99))
    return Spread(mean=float(known.mean()), p50=float(p50), p99=float(p99))


def relative_error(predicted: float | None, observed: float | None) -> float | None:
    """Signed; None where either is unknown or nothing was seen."""
    if predicted is None or observed is None or not observed:
        return None
    return predicted / observed - 1
