"""One load on running units, and what a stage says of it beforehand and afterwards."""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mux_cli.validate_figures import Comparison, Figures, figures_of
from mux_cli.validate_load import Observed, drive
from mux_cli.validate_models import Stage
from mux_cli.validate_predict import predicted, simulated
from mux_cli.validate_unit import KvWatch, RunningUnit, load_average
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.lengths import LengthShape
from mux_core.simulator.workloads import arrivals, streams_of
from mux_core.units import ModelName
from mux_runtime.profiling.yardstick import yardstick

TAIL_S: Final = 2.0
"""The load goes on past the window, so that its last requests are served under load as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is counted: `seconds` after a `warmup`, under lengths of a shape."""

    warmup: float
    seconds: float
    shape: LengthShape

    @property
    def end(self) -> float:
        return self.warmup + self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One load that was served. `lag_s`: how late its client was, at the 99th percentile;
    `yardstick_s`: mean of the yardstick in the window."""

    load: float
    seed: int
    window: Window
    asked: tuple[Arrival, ...]
    observed: Mapping[ModelName, Figures]
    errors: Mapping[str, int]
    lag_s: float
    load_average: float
    yardstick_s: float


def serve_load(
    stage: Stage, units: Sequence[RunningUnit], *, load: float, seed: int, window: Window
) -> Run:
    """Sends the load and waits for its answers."""
    asked = draw_arrivals(stage, load, seed, window)
    watch = KvWatch(units=units)
    begin, end = window.warmup, window.end
    with yardstick() as measured:
        began = time.monotonic()
        seen = asyncio.run(_drive(units, asked, watch, seed))
        yardstick_s = measured.mean(began + begin, began + end)
    observed = {
        model: figures_of(log, begin=begin, end=end, kv=watch.mean(model, begin, end))
        for model, log in seen.requests.items()
    }
    return Run(load=load, seed=seed, window=window, asked=asked, observed=observed,
               errors=seen.errors, lag_s=seen.lag_s, load_average=load_average(),
               yardstick_s=yardstick_s)  # fmt: skip


def compare(stage: Stage, run: Run) -> Comparison:
    """What the estimator says of the load, and the simulator of its very arrivals, both on a
    machine as fast as it was in the run."""
    slower = slowness(stage, run)
    then = stage if slower is None else stage.slowed(slower)
    return Comparison(
        load=run.load, seed=run.seed, observed=run.observed, load_average=run.load_average,
        slower=slower,
        predicted=predicted(then, run.load, run.window.shape, tuple(run.observed),
                            (run.window.warmup, run.window.end)),
        simulated=simulated(then, run.asked, begin=run.window.warmup, end=run.window.end),
    )  # fmt: skip


def slowness(stage: Stage, run: Run) -> float | None:
    """How many times as long as beside the profile the yardstick took; None if unknown."""
    known = stage.yardstick_s and run.yardstick_s
    return run.yardstick_s / stage.yardstick_s if known else None


def draw_arrivals(stage: Stage, load: float, seed: int, window: Window) -> tuple[Arrival, ...]:
    """Poisson arrivals of every model at its rate."""
    llms = [replace(llm, demand=replace(llm.demand, rate=stage.rates[llm.name]))
            for llm in stage.problem.llms]  # fmt: skip
    streams = streams_of(llms, load=load, shape=window.shape)
    return tuple(arrivals(streams, seed=seed, until=window.end + TAIL_S))


async def _drive(
    units: Sequence[RunningUnit], asked: Sequence[Arrival], watch: KvWatch, seed: int
) -> Observed:
    urls = {ModelName(member.model): unit.url for unit in units for member in unit.spec.members}
    watching = asyncio.create_task(watch.run())
    try:
        return await drive(urls, asked, seed=seed)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
