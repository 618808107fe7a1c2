"""What a run leaves behind: one line per request, and per member what its unit saw.

Times are seconds of the virtual clock from the start of the run, warm-up included; NaN where a
thing did not happen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mux_core.units import ModelName, UnitId

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLog:
    """All requests of one LLM in order of arrival; every column has one entry per request.

    `first`: first token out. `finished`: last token out. `prompt`, `output`: tokens asked for.
    `rejected`: requests turned away: too long for the KV of their replica, or its queue was full.
    """

    arrived: Column
    first: Column
    finished: Column
    prompt: Column
    output: Column
    rejected: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLog:
    """One replica in its unit over the measured window.

    `kv_mean`, `kv_max`: part of the unit's KV it held, over time. `kv_samples`, `batch_samples`:
    (seconds, value) pairs in equal distances. `prefill_steps`, `decode_steps`: steps it ran;
    `batch_mean`: requests per decode step; `busy`: part of the window with a step of it running.
    """

    unit: UnitId
    model: ModelName
    kv_mean: float
    kv_max: float
    kv_samples: Column
    batch_samples: Column
    prefill_steps: int
    decode_steps: int
    batch_mean: float
    busy: float
    preempted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One step on a unit's timeline; `phase` is `prefill` or `decode`."""

    unit: UnitId
    model: ModelName
    phase: str
    begin: float
    end: float
    percent: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveLog:
    """A plan taken up during the run: when, what it changed, for how long who did not serve."""

    at: float
    gpus_used: int
    steps: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run of one seed. `until`: where the clock stopped, earlier than asked if interrupted.

    `spans` covers the first seconds of the window only. `events`: events taken off the calendar.
    """

    warmup: float
    until: float
    events: int
    gpus_used: float
    requests: Mapping[ModelName, RequestLog]
    members: tuple[MemberLog, ...] = ()
    spans: tuple[Span, ...] = ()
    moves: tuple[MoveLog, ...] = ()
    interrupted: bool = False
    checks: Mapping[str, float] = field(default_factory=dict)
