"""What runs were worth: goodput, service ratios, SLO attainment, and whether they were steady.

One window for all LLMs. A run goes on past it under the same load (its *tail*), so that requests
which arrive near the end are judged like the others:

* offered and served are arrivals and completions inside the window, per second of it;
* latencies and attainment are of the requests that arrived inside the window; what has not
  finished when the clock stops has missed every scale, and a request still without its first
  token counts with the time it has waited so far, so a starved LLM's TTFT is a lower bound;
* figures of several runs are of all their requests together, not means of means: a rare LLM's
  ratio would be biased low by the runs in which few of its requests happened to end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mux_core.errors import SpecError
from mux_core.simulator.latency_base import LatencyBase
from mux_core.simulator.record import Column, RequestLog, RunRecord
from mux_core.units import ModelName

Counts = NDArray[np.int64]

SCALES: Final = (1, 2, 3, 5, 8, 10, 20)
MOMENTS: Final = 60
"""Points of the window at which requests in the system are counted, for the steady check."""
GROWTH: Final = 0.01
"""A queue grows if it does by this part of the arrivals, and by more than chance would have it."""
CHANCE: Final = 4.0
SHORT: Final = 0.05
EDGES: Final = 2.0
HOLDS: Final = 3.0
"""Standard deviations within which the window's edges may leave Little's law open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTally:
    """One LLM in one run. `met`, `met_e2e`: requests within each of `SCALES`.

    `offered`, `unfinished` count the window's arrivals, `served` its completions. `ttft`, `tpot`
    in s. `backlog`: requests in the system at `MOMENTS` points. `present`: their mean number over
    the window; `stay`: mean seconds from arrival to end. `kv_*`: parts of the unit's KV.
    """

    offered: int
    served: int
    unfinished: int
    met: Counts
    met_e2e: Counts
    ttft: Column
    tpot: Column
    backlog: Column
    present: float
    stay: float
    kv_mean: float
    kv_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTally:
    """One run, counted. `seconds`: of the window that the run covered."""

    seconds: float
    gpus_used: float
    events: int
    models: Mapping[ModelName, ModelTally]
    interrupted: bool = False


def tally(record: RunRecord, *, seconds: float, bases: Mapping[ModelName, LatencyBase]) -> RunTally:
    """Counts one run over the `seconds` after its warm-up, or what an interruption left of them.

    LLMs are in the order of `bases`. Raises SpecError when the clock stopped before the window.
    """
    begin, end = record.warmup, min(record.warmup + seconds, record.until)
    if not end > begin:
        raise SpecError(f"run: stopped at {record.until:.1f} s, inside the warm-up of {begin:g} s; "
                        "nothing was measured")  # fmt: skip
    return RunTally(
        seconds=end - begin,
        gpus_used=record.gpus_used,
        events=record.events,
        models={
            name: _tally_model(record, name, (begin, end), base) for name, base in bases.items()
        },
        interrupted=record.interrupted,
    )


def _tally_model(
    record: RunRecord, model: ModelName, window: tuple[float, float], base: LatencyBase
) -> ModelTally:
    begin, end = window
    until, log = record.until, record.requests[model]
    members = [member for member in record.members if member.model == model]
    inside = (log.arrived >= begin) & (log.arrived < end)
    arrived, first, finished = (x[inside] for x in (log.arrived, log.first, log.finished))
    prompt, output = log.prompt[inside], log.output[inside]
    ended = ~np.isnan(finished)
    ttft = np.where(np.isnan(first), until, first) - arrived
    tpot = (finished - first) / np.maximum(1.0, output - 1)
    slowest = np.maximum(ttft / base.ttft(prompt), tpot / base.tpot)
    whole = (finished - arrived) / base.end_to_end(prompt, output)
    left = np.where(np.isnan(log.finished), until, log.finished)
    stays = np.minimum(left, end) - np.maximum(log.arrived, begin)
    return ModelTally(
        offered=len(arrived),
        served=int(((log.finished >= begin) & (log.finished < end)).sum()),
        unfinished=int((~ended).sum()),
        met=_within(slowest[ended]),
        met_e2e=_within(whole[ended]),
        ttft=ttft,
        tpot=tpot[ended & (output > 1)],
        backlog=_backlog(log, np.linspace(begin, end, MOMENTS)),
        present=float(np.maximum(0.0, stays).sum() / (end - begin)),
        stay=float((left[inside] - arrived).mean()) if len(arrived) else 0.0,
        kv_mean=float(np.mean([m.kv_mean for m in members])) if members else 0.0,
        kv_max=max((m.kv_max for m in members), default=0.0),
    )


def _within(slowness: Column) -> Counts:
    """How many are at most each scale, rounding aside."""
    edges = np.array(SCALES) * (1 + 1e-9)
    return np.searchsorted(np.sort(slowness), edges, side="right").astype(np.int64)


def _backlog(log: RequestLog, moments: Column) -> Column:
    arrived = np.searchsorted(log.arrived, moments, side="right")
    ended = np.sort(log.finished[~np.isnan(log.finished)])
    return (arrived - np.searchsorted(ended, moments, side="right")).astype(np.float64)


# Figures of one or more runs of one system; `runs` have the same LLMs.


def model_names(runs: Sequence[RunTally]) -> tuple[ModelName, ...]:
    return tuple(runs[0].models)


def measured_seconds(runs: Sequence[RunTally]) -> float:
    return sum(run.seconds for run in runs)


def offered(runs: Sequence[RunTally], model: ModelName) -> float:
    """Arrivals per second."""
    return sum(run.models[model].offered for run in runs) / measured_seconds(runs)


def served(runs: Sequence[RunTally], model: ModelName) -> float:
    """Completions per second."""
    return sum(run.models[model].served for run in runs) / measured_seconds(runs)


def ratio(runs: Sequence[RunTally], model: ModelName) -> float:
    """Service ratio min(1, served/offered); 1 without arrivals."""
    asked = offered(runs, model)
    return min(1.0, served(runs, model) / asked) if asked else 1.0


def goodput(runs: Sequence[RunTally]) -> float:
    """Capped goodput: the sum of min(served, offered), requests/s."""
    return sum(min(served(runs, m), offered(runs, m)) for m in model_names(runs))


def worst_ratio(runs: Sequence[RunTally]) -> float:
    return min(ratio(runs, model) for model in model_names(runs))


def left_behind(runs: Sequence[RunTally], model: ModelName) -> bool:
    """Whether an LLM got less than it was asked for by more than chance at the window's edges.

    Over 5 % of its arrivals, and over two standard deviations of their number.
    """
    asked = sum(run.models[model].offered for run in runs)
    missing = asked - sum(run.models[model].served for run in runs)
    return missing > max(SHORT * asked, EDGES * sqrt(asked))


def attainment(
    runs: Sequence[RunTally], scale: int, *, model: ModelName | None = None, e2e: bool = False
) -> float:
    """Share of arrivals within `scale`; of one LLM or all. 1 without arrivals."""
    index = SCALES.index(scale)
    chosen = [found for run in runs for name, found in run.models.items() if model in (None, name)]
    met = sum(int((found.met_e2e if e2e else found.met)[index]) for found in chosen)
    asked = sum(found.offered for found in chosen)
    return met / asked if asked else 1.0


def worst_attainment(runs: Sequence[RunTally], scale: int) -> float:
    """Attainment of the LLM that has the lowest."""
    return min(attainment(runs, scale, model=model) for model in model_names(runs))


def gpus_used(runs: Sequence[RunTally]) -> float:
    return float(np.mean([run.gpus_used for run in runs]))


@dataclass(frozen=True, slots=True)
class Spread:
    """A latency over requests, in s."""

    mean: float
    p50: float
    p99: float


def latency(runs: Sequence[RunTally], model: ModelName, kind: str) -> Spread | None:
    """TTFT (`ttft`) or TPOT (`tpot`) of an LLM; None where no request has one."""
    values = np.concatenate([getattr(run.models[model], kind) for run in runs])
    if not len(values):
        return None
    p50, p99 = np.percentile(values, (50, 99))
    return Spread(float(values.mean()), float(p50), float(p99))


def grows(runs: Sequence[RunTally], model: ModelName) -> bool:
    """Whether an LLM's queue still grew in the window's last third: its latencies have no mean.

    That third holds more requests than the one before by over 1 % of the arrivals between them,
    and by over four standard deviations of a Poisson number; so the first third may still fill
    decode batches that a short warm-up left empty.
    """
    third = MOMENTS // 3
    filled = np.mean([run.models[model].backlog for run in runs], axis=0)
    early, middle, late = (float(filled[at : at + third].mean()) for at in (0, third, 2 * third))
    between = offered(runs, model) * measured_seconds(runs) / len(runs) / 3
    return late > middle > early and late - middle > max(
        GROWTH * between, CHANCE * sqrt(1 + middle)
    )


@dataclass(frozen=True, slots=True)
class Little:
    """Little's law for one LLM: requests present on average, and arrivals/s times their stay."""

    present: float
    flow: float
    holds: bool


def little(runs: Sequence[RunTally], model: ModelName) -> Little:
    """`holds`: they differ by no more than the stays that the window's edges cut."""
    found = [run.models[model] for run in runs]
    present = float(np.mean([tally.present for tally in found]))
    flow = sum(t.offered * t.stay for t in found) / measured_seconds(runs)
    stay = max((t.stay for t in found), default=0.0)
    cut = HOLDS * stay * sqrt(2 * max(1.0, present) * len(runs)) / measured_seconds(runs)
    return Little(present, flow, abs(present - flow) <= cut)


# MuxServe's own figures, for the tables that replay its published ones.


def makespan_throughput(log: RequestLog) -> float:
    """Its requests/s of an LLM: finished requests by the time of the last one's end."""
    ended = log.finished[~np.isnan(log.finished)]
    return float(len(ended) / ended.max()) if len(ended) else 0.0


def whole_rate_weighted(
    throughput: Mapping[ModelName, float], rates: Mapping[ModelName, float]
) -> float:
    """The axis of its synthetic figures: the mean over LLMs of int(rate) times throughput."""
    return sum(int(rates[m]) * throughput[m] for m in rates) / len(rates)


def request_weighted(
    throughput: Mapping[ModelName, float], requests: Mapping[ModelName, int]
) -> float:
    """The axis of its ChatLMSYS figures: throughput averaged over requests."""
    return sum(requests[m] * throughput[m] for m in requests) / sum(requests.values())
