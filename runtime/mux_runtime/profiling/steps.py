"""How one point is measured on opened hosts: steps in a row, the median counts."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Final

from mux_core.costmodel.profile_set import PairStep
from mux_core.engine import Phase
from mux_runtime.profiling.bench import BenchHost
from mux_runtime.profiling.points import ROOM_TO_GROW, STEP_TOKENS

WARM: Final = 2
LEAST: Final = 5
MOST: Final = ROOM_TO_GROW - WARM - 2
SPEND_S: Final = 0.2
"""Steps of one point are repeated for this long, at least `LEAST` and at most `MOST` times."""
LONG_S: Final = 2.0
"""Of steps this long, two are enough."""
PAIR_S: Final = 0.7
SPREAD: Final = 0.75
"""Sequences of a batch are a quarter as long as their mean, up to seven quarters."""
ROUND_TRIPS: Final = 60

Timed = Callable[[], Awaitable[float]]
"""Runs one step; its seconds as the engine saw them."""


async def decode_s(host: BenchHost, *, batch: int, context: int) -> float:
    """Seconds of a decode step of `batch` sequences of `context` tokens on average."""
    taken = await _repeat(await _decoding(host, batch, context))
    await host.clear()
    return taken


async def prefill_s(host: BenchHost, *, batch: int, tokens: int) -> float:
    """Seconds to prefill `batch` prompts of `tokens` tokens."""
    return await _repeat(_prefilling(host, batch, tokens))


async def grant_s(host: BenchHost) -> float:
    """Seconds of a step that runs nothing, there and back."""
    taken = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        await host.step(rows=0, budget=0, seqs=0)
        taken.append(time.perf_counter() - begun)
    return median(taken)


async def handoff_s(host: BenchHost, *, context: int) -> float:
    """Seconds in which a decode host takes over a request of `context` tokens."""
    taken = []
    for index in range(ROUND_TRIPS // 3):
        begun = time.perf_counter()
        await host.adopt(str(index), context)
        taken.append(time.perf_counter() - begun)
        await host.clear()
    return median(taken)


def private_bytes(pid: int) -> int:
    """Memory that is a process's alone: neither weights nor KV, which are shared."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    sizes = [line.split()[1] for line in lines if line.startswith("Private_")]
    return sum(int(size) for size in sizes) * 1024


async def pair_s(
    hosts: tuple[BenchHost, BenchHost], sides: tuple[PairStep, PairStep]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds of each side's step: (alone, together)."""
    # Alone before and after, so that a drift of the machine does not pass for interference.
    before = [await _alone(host, side) for host, side in zip(hosts, sides, strict=True)]
    together = await _together(hosts, sides)
    after = [await _alone(host, side) for host, side in zip(hosts, sides, strict=True)]
    first, second = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    return (first, second), together


async def _alone(host: BenchHost, side: PairStep) -> float:
    taken = await _repeat(await _stepping(host, side))
    await host.clear()
    return taken


async def _together(
    hosts: tuple[BenchHost, BenchHost], sides: tuple[PairStep, PairStep]
) -> tuple[float, float]:
    ends = time.monotonic() + PAIR_S
    first, second = await asyncio.gather(
        *(_until(ends, host, side) for host, side in zip(hosts, sides, strict=True))
    )
    return first, second


async def _until(ends: float, host: BenchHost, side: PairStep) -> float:
    """The median step up to a moment; sequences that have grown start anew."""
    taken: list[float] = []
    while time.monotonic() < ends or len(taken) <= WARM:
        step = await _stepping(host, side)
        for _ in range(MOST):
            taken.append(await step())
            if time.monotonic() >= ends:
                break
        await host.clear()
    return median(taken[WARM:])


async def _stepping(host: BenchHost, side: PairStep) -> Timed:
    if side.phase is Phase.PREFILL:
        return _prefilling(host, side.batch, side.tokens)
    return await _decoding(host, side.batch, side.tokens)


def spread(mean: int, count: int, *, longest: int) -> list[int]:
    """Lengths of sequences as they meet in a batch: evenly about their mean, none like another.

    Batches whose sequences are all of one length are faster, and hardly ever met.
    """
    reach = SPREAD * min(mean - 1, longest - mean)
    return [round(mean + reach * (2 * (at + 0.5) / count - 1)) for at in range(count)]


async def _decoding(host: BenchHost, batch: int, context: int) -> Timed:
    longest = host.card.max_model_len - ROOM_TO_GROW
    for index, length in enumerate(spread(context, batch, longest=longest)):
        await host.adopt(str(index), length)
    need = 0

    async def step() -> float:
        nonlocal need
        result = await host.step(rows=need, budget=batch, seqs=batch)
        need = result.need_rows
        return result.elapsed_ms / 1000

    return step


def _prefilling(host: BenchHost, batch: int, tokens: int) -> Timed:
    rows = batch * host.card.geometry.rows_for(tokens)
    asked = 0

    async def step() -> float:
        nonlocal asked
        for _ in range(batch):
            asked += 1
            await host.ask(f"p{asked}", tokens)
        # A prompt longer than a step's budget goes over several, as in a unit.
        taken, need, more = 0.0, rows, True
        while more:
            result = await host.step(rows=need, budget=STEP_TOKENS, seqs=batch)
            taken, need, more = taken + result.elapsed_ms, need - result.used, result.more
        return taken / 1000

    return step


async def _repeat(step: Timed) -> float:
    """The median of steps in a row, the first ones not counted."""
    first = await step()
    if first > LONG_S:
        return min(first, await step())
    for _ in range(WARM - 1):
        await step()
    taken: list[float] = []
    ends = time.monotonic() + SPEND_S
    while len(taken) < LEAST or (time.monotonic() < ends and len(taken) < MOST):
        taken.append(await step())
    return median(taken)
