"""Measured runs as the one JSON object that scripts depend on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from mux_cli.simulate_arguments import Window
from mux_core.simulator import measures
from mux_core.simulator.intervals import Interval, interval
from mux_core.simulator.measures import SCALES, RunTally
from mux_core.simulator.record import RunRecord
from mux_core.units import ModelName

Figure = Callable[[Sequence[RunTally]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The runs of one system and what was counted in them, in the order of their seeds."""

    strategy: str
    policy: str
    window: Window
    runs: tuple[RunTally, ...]
    records: tuple[RunRecord, ...] = ()
    moves: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def interrupted(self) -> bool:
        return any(run.interrupted for run in self.runs)

    @property
    def growing(self) -> tuple[ModelName, ...]:
        """LLMs whose queues grew; empty where the rates moved by themselves."""
        names = measures.model_names(self.runs)
        return () if self.moves else tuple(m for m in names if measures.grows(self.runs, m))


def run_document(measured: Measured, *, seconds: float, check: bool = False) -> dict[str, Any]:
    """The object `muxserve simulate -o json` prints; `seconds` is what it took to find out."""
    runs, growing = measured.runs, measured.growing
    document = {
        "strategy": measured.strategy,
        "policy": measured.policy,
        "seeds": len(runs),
        "window": {
            "warmup": measured.window.warmup,
            "seconds": measured.window.seconds,
            "tail": measured.window.tail,
        },
        "goodput": measures.goodput(runs),
        "offered": sum(measures.offered(runs, m) for m in measures.model_names(runs)),
        "worst_ratio": measures.worst_ratio(runs),
        "gpus_used": _whole(measures.gpus_used(runs)),
        "slo": {str(s): measures.attainment(runs, s) for s in SCALES},
        "slo_worst": {str(s): measures.worst_attainment(runs, s) for s in SCALES},
        "slo_e2e": {str(s): measures.attainment(runs, s, e2e=True) for s in SCALES},
        "models": {m: _model(runs, m, m in growing) for m in measures.model_names(runs)},
        "intervals": _intervals(runs),
        "steady": None if measured.moves else not growing,
        "growing": list(growing),
        "unfinished": sum(m.unfinished for run in runs for m in run.models.values()),
        "interrupted": measured.interrupted,
        "moves": _moves(measured.records),
        "notes": list(measured.notes),
        "events": sum(run.events for run in runs),
        "seconds": seconds,
    }
    if check:
        document["check"] = _check(measured)
    return document


def _whole(value: float) -> float:
    """A number of GPUs as people write it; a fraction where it changed during the run."""
    return int(value) if value == int(value) else value


def _model(runs: Sequence[RunTally], model: ModelName, grows: bool) -> dict[str, Any]:
    found = [run.models[model] for run in runs]
    return {
        "offered": measures.offered(runs, model),
        "served": measures.served(runs, model),
        "ratio": measures.ratio(runs, model),
        "left_behind": measures.left_behind(runs, model),
        "steady": not grows,
        "ttft_ms": _latency(runs, model, "ttft"),
        "tpot_ms": _latency(runs, model, "tpot"),
        "kv": {
            "mean": sum(tally.kv_mean for tally in found) / len(found),
            "max": max(tally.kv_max for tally in found),
        },
        "slo": {str(s): measures.attainment(runs, s, model=model) for s in SCALES},
    }


def _latency(runs: Sequence[RunTally], model: ModelName, kind: str) -> dict[str, float | None]:
    found = measures.latency(runs, model, kind)
    if found is None:
        return {"mean": None, "p50": None, "p99": None}
    return {name: getattr(found, name) * 1000 for name in ("mean", "p50", "p99")}


def _intervals(runs: Sequence[RunTally]) -> dict[str, Any]:
    """95 % over the seeds, as [low, high]; null with one run."""
    shares: Mapping[str, Callable[[int], Figure]] = {
        "slo": lambda s: lambda some: measures.attainment(some, s),
        "slo_worst": lambda s: lambda some: measures.worst_attainment(some, s),
        "slo_e2e": lambda s: lambda some: measures.attainment(some, s, e2e=True),
    }
    return {
        "goodput": _ends(interval(measures.goodput, runs)),
        "worst_ratio": _share(interval(measures.worst_ratio, runs)),
        "gpus_used": _ends(interval(measures.gpus_used, runs)),
        **{
            name: {str(s): _share(interval(figure(s), runs)) for s in SCALES}
            for name, figure in shares.items()
        },
        "models": {m: _model_intervals(runs, m) for m in measures.model_names(runs)},
    }


def _model_intervals(runs: Sequence[RunTally], model: ModelName) -> dict[str, Any]:
    def mean_ttft(some: Sequence[RunTally]) -> float:
        found = measures.latency(some, model, "ttft")
        return float("nan") if found is None else found.mean * 1000

    ttft = interval(mean_ttft, runs)
    return {
        "served": _ends(interval(lambda some: measures.served(some, model), runs)),
        "ratio": _share(interval(lambda some: measures.ratio(some, model), runs)),
        "ttft_ms": None if ttft.low != ttft.low else _ends(ttft),
    }


def _ends(found: Interval) -> list[float] | None:
    return None if found.low is None or found.high is None else [found.low, found.high]


def _share(found: Interval) -> list[float] | None:
    return _ends(found.within(0.0, 1.0))


def _moves(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Plans taken up during the first run; the others' differ only by their arrivals."""
    if not records:
        return []
    return [
        {"at": move.at, "gpus_used": move.gpus_used, "steps": [dict(step) for step in move.steps]}
        for move in records[0].moves
    ]


def _check(measured: Measured) -> dict[str, Any]:
    """Little's law per LLM whose queue does not grow, and whether the runs kept their books."""
    runs = measured.runs
    law = {m: measures.little(runs, m) for m in measures.model_names(runs)}
    applies = {m: None if m in measured.growing else found.holds for m, found in law.items()}
    books = {m: _books(measured.records, m) for m in law}
    return {
        "little": {
            model: {
                "present": found.present,
                "rate_times_stay": found.flow,
                "holds": applies[model],
                "counted": books[model][0],
                "logged": books[model][1],
            }
            for model, found in law.items()
        },
        "holds": False not in applies.values()
        and all(isclose(counted, logged, abs_tol=1e-6) for counted, logged in books.values()),
    }


def _books(records: Sequence[RunRecord], model: ModelName) -> tuple[float, float]:
    """Requests present as the clock counted them, and as the log of requests has them."""
    counted = logged = 0.0
    for record in records:
        found = record.checks
        counted += found[f"L {model}"] / len(records)
        logged += found[f"lambda {model}"] * found[f"W {model}"] / len(records)
    return counted, logged
