"""An open loop: each request is sent at its moment, whatever became of those before it."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np

from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.record import RequestLog
from mux_core.units import ModelName
from mux_runtime.profiling.client import Marks, open_session, stream

FIRST_TOKEN_ID: Final = 5
"""Prompts are of ordinary tokens, not of the special ones before it."""
VOCAB: Final = 500
DRAIN_S: Final = 120.0
"""Requests still running so long after the last arrival count as unfinished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What clients saw: requests by model as the simulator logs them; what went wrong, counted.

    `lag_s`: how late this client sent its requests, at the 99th percentile.
    """

    requests: Mapping[ModelName, RequestLog]
    errors: Mapping[str, int]
    lag_s: float


async def drive(
    urls: Mapping[ModelName, str], arrivals: Sequence[Arrival], *, seed: int
) -> Observed:
    """Sends all arrivals, each model's to its unit."""
    draw = Random(seed)
    prompts = [[draw.randrange(FIRST_TOKEN_ID, VOCAB) for _ in range(a.prompt)] for a in arrivals]
    async with open_session() as session:
        tasks: list[asyncio.Task[Marks]] = []
        began = time.perf_counter()
        for arrival, prompt in zip(arrivals, prompts, strict=True):
            wait = began + arrival.at - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(
                asyncio.create_task(
                    stream(session, urls[arrival.model], arrival.model, prompt, arrival.output)
                )
            )
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_S)
        marks = [await _ended(task) for task in tasks]
    return _observed(arrivals, marks, began)


async def _ended(task: asyncio.Task[Marks]) -> Marks:
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait([task])
    return Marks(sent=time.perf_counter(), error="not finished in time")


def _observed(arrivals: Sequence[Arrival], marks: Sequence[Marks], began: float) -> Observed:
    errors: dict[str, int] = {}
    lags = [0.0]
    by_model: dict[ModelName, list[tuple[Arrival, Marks]]] = {}
    for arrival, mark in zip(arrivals, marks, strict=True):
        by_model.setdefault(arrival.model, []).append((arrival, mark))
        lags.append(mark.sent - began - arrival.at)
        if mark.error:
            errors[mark.error] = errors.get(mark.error, 0) + 1
    return Observed(
        requests={model: _log(found, began) for model, found in sorted(by_model.items())},
        errors=errors, lag_s=float(np.percentile(lags, 99)),
    )  # fmt: skip


def _log(found: Sequence[tuple[Arrival, Marks]], began: float) -> RequestLog:
    def moment(value: float, whole: bool) -> float:
        return value - began if value and whole else float("nan")

    return RequestLog(
        arrived=np.array([arrival.at for arrival, _ in found]),
        first=np.array([moment(mark.first, True) for _, mark in found]),
        finished=np.array([moment(mark.last, mark.whole) for _, mark in found]),
        prompt=np.array([float(arrival.prompt) for arrival, _ in found]),
        output=np.array([float(arrival.output) for arrival, _ in found]),
    )
