"""A profile from its first host to its last point: what was measured before is not measured again.

Every point is visited in some passes with everything else between them, and the middle time
counts (of a unit's costs, which are parts of a sum, the mean): a shared machine is faster and
slower for a while, and what is predicted is the usual.
Points whose passes still differ are visited more often, as time allows.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any, Final, assert_never

from mux_core.engine import Phase
from mux_core.units import Bytes
from mux_runtime.profiling import steps
from mux_runtime.profiling.bench import Bench, BenchHost, Device, open_bench
from mux_runtime.profiling.journal import Journal, Value
from mux_runtime.profiling.points import PAIR_CONTEXT, Grid, Kind, Point
from mux_runtime.profiling.probe_unit import ToServe, open_unit
from mux_runtime.profiling.shares import open_partition
from mux_runtime.profiling.unit_cost import unit_times
from mux_runtime.profiling.yardstick import yardstick

OPEN_HOSTS: Final = 8
"""More are not kept open: each holds the memory of its back-end."""
SETTLED: Final = 0.05
"""Part of a point's middle time by which the passes next to it may differ together."""

Told = Callable[[str, float, float], None]
"""What is measured now, the part of the time that is over, and seconds left at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to profile: folders of checkpoints by name, on a device.

    `to_serve`: by the unit whose own cost is timed. `deadline` is a moment of
    `time.monotonic`, after which no further point is begun. `passes`: this run makes no more, even
    if more are due.
    """

    models: Mapping[str, Path]
    device: Device
    grid: Grid
    folder: Path
    unit_bytes: int
    arena: Bytes
    to_serve: ToServe
    deadline: float | None = None
    passes: int | None = None


async def run(job: Job, journal: Journal, told: Told) -> tuple[str, ...]:
    """Measures what the journal lacks; what the deadline left out, or was left to later runs."""
    left: list[str] = []
    async with (
        open_partition(job.device.name, job.folder) as partition,
        open_bench(job.folder, job.device, unit_bytes=job.unit_bytes, arena=job.arena,
                   partition=partition) as bench,
    ):  # fmt: skip
        hosts = _Hosts(bench=bench, models=job.models)
        clock = _Clock(job.deadline)
        for turn, missing in _turns(job, journal):
            for at, point in enumerate(missing):
                if clock.over:
                    if turn < job.grid.passes:
                        left.append(f"{len(missing) - at} of {len(job.grid.points)} points of pass "
                                    f"{turn + 1} (no time left)")  # fmt: skip
                    break
                told(point.key, *clock.standing(_most_left(job, missing[at:], turn)))
                journal.note(point.key, turn, await _measure(point, hosts, job))
                clock.done(point)
    if job.passes is not None and unfinished(job.grid, journal):
        left.append("further passes (--passes; the same command adds them)")
    return (*left, *_unsettled(job.grid, journal))


def _turns(job: Job, journal: Journal) -> Iterator[tuple[int, list[Point]]]:
    """The passes of this run, each with what it has to measure."""
    begun = 0
    for turn in range(job.grid.most_passes):
        missing = due(job.grid, journal, turn)
        if missing and begun != job.passes:
            begun += 1
            yield turn, missing


def unfinished(grid: Grid, journal: Journal) -> bool:
    """Whether another pass would measure anything."""
    return any(due(grid, journal, turn) for turn in range(grid.most_passes))


def due(grid: Grid, journal: Journal, turn: int) -> list[Point]:
    """What a pass has to measure: what an earlier run did not, and what is not settled yet."""
    found = [
        point
        for point in grid.points
        if (point.key, turn) not in journal.found and not (turn and point.kind in grid.once)
    ]
    if turn < grid.passes:
        return found
    return [point for point in found if not settled(_passes(journal, point))]


def _most_left(job: Job, missing: Sequence[Point], turn: int) -> float:
    """The guessed cost of what this run may still measure, should nothing settle."""
    grid = job.grid
    again = grid.points if turn < grid.passes else missing
    passes = min(grid.most_passes - turn, job.passes or grid.most_passes) - 1
    later = passes * sum(point.cost for point in again if point.kind not in grid.once)
    return sum(point.cost for point in missing) + later


def _unsettled(grid: Grid, journal: Journal) -> Iterator[str]:
    """Says how many points stand on passes that are far apart."""
    many = sum(len(passes) >= grid.passes > 1 and not settled(passes)
               for passes in (_passes(journal, point) for point in grid.points))  # fmt: skip
    if many:
        yield (f"agreement of the passes at {many} of {len(grid.points)} points (next to the "
               f"middle one they are more than {SETTLED:.0%} apart)")  # fmt: skip


def settled(passes: Sequence[Value]) -> bool:
    """Whether a point's middle time would hardly change with another pass."""
    sizes = sorted(map(_size, passes))
    middle = (len(sizes) - 1) // 2
    if len(sizes) < 3:
        return False
    return sizes[middle + 1] - sizes[middle - 1] <= SETTLED * sizes[middle]


@dataclass(slots=True)
class _Hosts:
    """Opened hosts by what they are; the one not used for longest makes room for the next."""

    bench: Bench
    models: Mapping[str, Path]
    open: dict[tuple[str, Phase, int, int], BenchHost] = field(default_factory=dict)

    async def get(self, model: str, phase: Phase, percent: int, copy: int = 0) -> BenchHost:
        key = (model, phase, percent, copy)
        host = self.open.pop(key, None)
        if host is None:
            await self._make_room()
            host = await self.bench.start(model, self.models[model], phase, percent)
        self.open[key] = host
        return host

    async def _make_room(self) -> None:
        while len(self.open) >= OPEN_HOSTS:
            oldest = next(iter(self.open))
            await self.bench.end(self.open.pop(oldest))


class _Clock:
    """How far a run is, by the guessed cost of its points and the time the done ones took."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = inf if deadline is None else deadline
        self._done = 0.0
        self._began = time.monotonic()

    @property
    def over(self) -> bool:
        return time.monotonic() > self._deadline

    def done(self, point: Point) -> None:
        self._done += point.cost

    def standing(self, cost_left: float) -> tuple[float, float]:
        """(part done, seconds left at most)."""
        now = time.monotonic()
        spent = now - self._began
        left = spent / self._done * cost_left if self._done else inf
        left = min(left, self._deadline - now)
        return spent / (spent + left), left


async def _measure(point: Point, hosts: _Hosts, job: Job) -> Value:
    match point.kind:
        case Kind.PAIR:
            return await _pair(point, hosts)
        case Kind.UNIT:
            return await _unit(point, job)
        case Kind.PREFILL:
            host = await hosts.get(point.model, Phase.PREFILL, point.percent)
            return {"s": await steps.prefill_s(host, batch=point.batch, tokens=point.tokens)}
        case Kind.DECODE | Kind.GRANT | Kind.HANDOFF | Kind.MEMORY:
            host = await hosts.get(point.model, Phase.DECODE, point.percent)
            return await _decode_side(point, host)
        case _:
            assert_never(point.kind)


async def _decode_side(point: Point, host: BenchHost) -> Value:
    match point.kind:
        case Kind.GRANT:
            return {"s": await steps.grant_s(host)}
        case Kind.HANDOFF:
            context = min(PAIR_CONTEXT, host.card.max_model_len - 1)
            return {"s": await steps.handoff_s(host, context=context)}
        case Kind.MEMORY:
            return {"bytes": steps.private_bytes(host.pid)}
        case _:
            return {"s": await steps.decode_s(host, batch=point.batch, context=point.tokens)}


async def _pair(point: Point, hosts: _Hosts) -> Value:
    assert point.pair is not None
    one, other = point.pair
    first = await hosts.get(one.model, one.phase, one.percent)
    copy = int((one.model, one.phase) == (other.model, other.phase))
    second = await hosts.get(other.model, other.phase, other.percent, copy)
    alone, together = await steps.pair_s((first, second), point.pair)
    return {"alone_s": alone, "together_s": together}


async def _unit(point: Point, job: Job) -> Value:
    with yardstick() as speed:
        async with open_unit(job.folder, job.to_serve, point.percent) as unit:
            return asdict(await unit_times(unit, speed, cores=job.device.cores))


def values(journal: Journal, points: Sequence[Point]) -> dict[str, Value]:
    """What was measured of each point: the pass in which its (together) time was the middle one,
    of two passes the smaller; of the unit the mean of all passes, part by part."""
    found: dict[str, Value] = {}
    for point in points:
        passes = _passes(journal, point)
        if passes and point.kind is Kind.UNIT:
            # Its parts were told apart by fits: one is too small where another is too large, and
            # which pass is the middle one says nothing of any of them.
            found[point.key] = _mean(passes)
        elif passes:
            found[point.key] = sorted(passes, key=_size)[(len(passes) - 1) // 2]
    return found


def _mean(values: Sequence[Any]) -> Any:
    match values[0]:
        case Mapping():
            return {name: _mean([value[name] for value in values]) for name in values[0]}
        case list() | tuple():
            return [_mean(parts) for parts in zip(*values, strict=True)]
        case _:
            return fmean(values)


def _passes(journal: Journal, point: Point) -> list[Value]:
    """What each pass found, in their order."""
    turns = sorted(turn for key, turn in journal.found if key == point.key)
    return [journal.found[point.key, turn] for turn in turns]


def _size(value: Value) -> float:
    """What makes one measurement of a point smaller than another."""
    if "together_s" in value:
        return float(sum(value["together_s"]) + sum(value["alone_s"]))
    if "cost" in value:
        return float(value["cost"]["step_s"] + value["cost"]["token_s"])
    return float(value.get("s", value.get("bytes", 0.0)))
