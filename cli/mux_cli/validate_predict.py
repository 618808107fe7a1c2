"""What the estimator and the simulator say of running units under given arrivals."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from mux_cli.validate_figures import Figures, figures_of, predicted_figures
from mux_cli.validate_models import Stage
from mux_cli.validate_unit import SAMPLE_S
from mux_core.estimator.memory import fixed_bytes, room_bytes
from mux_core.estimator.turn_member import Lengths
from mux_core.estimator.turns import TurnUnits
from mux_core.simulator.adbs_policy import adbs
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.lengths import LengthShape
from mux_core.simulator.run import Settings, simulate
from mux_core.simulator.workloads import streams_of
from mux_core.units import ModelName

POINTS: Final = 64
"""Lengths are told to the estimator as so many equally likely pairs."""
FULL: Final = 1.0
HALVINGS: Final = 24


def predicted(
    stage: Stage, load: float, shape: LengthShape, models: Sequence[ModelName],
    window: tuple[float, float] | None = None,
) -> dict[ModelName, Figures]:  # fmt: skip
    """The estimator's figures at a part of the stage's rates; it knows no single arrival.

    `window`: between these seconds of a load on idle units; what settles in the end, if None.
    """
    estimator = replace(_estimator(stage, shape), window=window)
    found: dict[ModelName, Figures] = {}
    for unit in stage.placement.units:
        kind, asks = stage.asks(unit, load)
        memory = room_bytes(kind) - sum(fixed_bytes(ask.llm, kind) for ask in asks)
        outcome = estimator.outcome(kind, asks)
        for ask, member in zip(asks, outcome.members, strict=True):
            found[ask.llm.name] = predicted_figures(member, offered=ask.rate, memory=memory)
    return {name: found[name] for name in models}


def capacity(stage: Stage, shape: LengthShape) -> float:
    """The highest factor on the rates at which every member is served what it is sent."""
    estimator = _estimator(stage, shape)

    def carries(load: float) -> bool:
        outcomes = [estimator.outcome(*stage.asks(unit, load)) for unit in stage.placement.units]
        return all(m.utilisation < FULL for outcome in outcomes for m in outcome.members)

    low, high = 0.0, 1.0
    while carries(high) and high < 1e4:
        low, high = high, high * 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if carries(middle) else (low, middle)
    return low


def simulated(
    stage: Stage, asked: Sequence[Arrival], *, begin: float, end: float
) -> dict[ModelName, Figures]:
    """The simulator's figures for these very arrivals."""
    record = simulate(stage.problem, stage.placement, asked, adbs, Settings(
        seconds=max(arrival.at for arrival in asked) + 1 if asked else end, warmup=0.0,
        interference=stage.interference, cpu=stage.cpu, tables=stage.costs.tables,
        unit_bytes=stage.unit_bytes, sample_s=SAMPLE_S))  # fmt: skip
    held = {member.model: member.kv_samples for member in record.members}
    return {
        model: figures_of(log, begin=begin, end=end,
                          kv=_mean_kv(held[model], begin, end))
        for model, log in record.requests.items() if len(log.arrived)
    }  # fmt: skip


def _estimator(stage: Stage, shape: LengthShape) -> TurnUnits:
    lengths: dict[ModelName, Lengths] = {}
    for stream in streams_of(stage.problem.llms, shape=shape):
        # A lattice of rank one: equal steps in one column, golden ones in the other.
        at = (np.arange(POINTS) + 0.5) / POINTS
        prompts, outputs = stream.lengths.draw(np.stack((at, (at * POINTS * 0.618034) % 1), axis=1))
        lengths[stream.model] = tuple(zip(map(float, prompts), map(float, outputs), strict=True))
    return TurnUnits(tables=stage.costs.tables, interference=stage.interference, lengths=lengths,
                     cpu=stage.cpu)  # fmt: skip


def _mean_kv(samples: object, begin: float, end: float) -> float:
    pairs = np.asarray(samples, dtype=np.float64).reshape(-1, 2)
    inside = pairs[(pairs[:, 0] >= begin) & (pairs[:, 0] < end), 1]
    return float(inside.mean()) if len(inside) else 0.0
