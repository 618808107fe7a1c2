"""What a whole unit adds to its engine's steps: measured on a unit of one small model.

The unit is `python -m mux_runtime unit`, asked over HTTP from this machine, so on a CPU client,
front, scheduler and engine share the cores, as they do under load.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

import aiohttp
from scipy.optimize import nnls

from mux_core.costmodel.profile_set import CROWD, CpuWork, UnitCost, Work
from mux_core.errors import PeerError
from mux_core.simulator.cores import together_s
from mux_core.unitspec import Device, MemberSpec, UnitSpec, to_json
from mux_runtime.profiling.client import open_session, stream
from mux_runtime.profiling.devices import cores
from mux_runtime.supervisor.children import Child, Children
from mux_runtime.supervisor.main import BRAIN

HOST: Final = "127.0.0.1"
MODELS: Final = tuple(f"probe-{number}" for number in range(CROWD))
MEMORY: Final = CROWD * (256 << 20)
READY_S: Final = 180.0
BATCHES: Final = (1, 8)
OUTPUTS: Final = 60
PROMPT: Final = 16
ROUNDS: Final = 5
CROWDS: Final = ((1, 10), (8, 10), (32, 5))
"""(streams of each model at once, rounds): what cold caches cost a step, whatever its batch, and
what they cost it in proportion, shows only over steps that are very short and quite long."""
LOADS: Final = ((1, OUTPUTS, 8), (8, OUTPUTS, 5), (8, 3, 24))
"""(streams at once, tokens of each, rounds): long ones alone and together, and short ones."""
CONTEXT: Final = PROMPT + OUTPUTS // 2
"""Mean context of the streams, for the engine's own time of such a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimes:
    """The probe's own steps on a bench: decode by the batches of `BATCHES`, prefill of `PROMPT`."""

    decode_s: tuple[float, float]
    prefill_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Streams that ran at once: median seconds between tokens, and to the first one."""

    tpot_s: float
    ttft_s: float


async def unit_cost(
    folder: Path, model: Path, percent: int, engine: EngineTimes
) -> UnitCost:  # fmt: skip
    """Runs the probe's streams in a unit and takes the engine's share off. `folder` exists."""
    async with _unit(folder, model, percent) as unit:
        await _streams(unit.url, 1, models=MODELS)
        one, many = [await _median_streams(unit.url, batch) for batch in BATCHES]
        scheduler, client = await _work(unit)
        crowds = {batch: await _crowd(unit.url, batch, rounds) for batch, rounds in CROWDS}
    few, lots = BATCHES
    beyond = [max(0.0, s.tpot_s - own)
              for s, own in zip((one, many), engine.decode_s, strict=True)]  # fmt: skip
    token = max(0.0, (beyond[1] - beyond[0]) / (lots - few))
    cost = UnitCost(step_s=max(0.0, beyond[0] - token), token_s=token,
                    request_s=max(0.0, one.ttft_s - engine.prefill_s),
                    scheduler=scheduler, client=client)  # fmt: skip
    return crowded(CpuWork(cores=cores(), unit=cost), percent, crowds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Seconds between tokens with streams of one model, and of `CROWD` models at once."""

    alone_s: float
    together_s: float


def crowded(work: CpuWork, percent: int, crowds: Mapping[int, Crowd]) -> UnitCost:
    """The unit's cost, with what a crowd costs beyond its sharing the cores; `crowds` by batch."""
    shared = {batch: together_s(work, found.alone_s, batch, percent=percent, hosts=CROWD)
              for batch, found in crowds.items()}  # fmt: skip
    more = [max(0.0, found.together_s / shared[batch] - 1) for batch, found in crowds.items()]
    (fixed, part), _ = nnls([(1 / found.alone_s, 1.0) for found in crowds.values()], more)
    return replace(work.unit, crowded_s=float(fixed), crowded_part=float(part))


async def _crowd(url: str, batch: int, rounds: int) -> Crowd:
    """In turn, so that a machine that is slower for a while is so for both."""
    alone, slower = [], []
    for _ in range(rounds):
        alone.append((await _streams(url, batch)).tpot_s)
        slower.append((await _streams(url, batch, models=MODELS)).tpot_s / alone[-1])
    return Crowd(alone_s=median(alone), together_s=median(alone) * median(slower))


async def _median_streams(url: str, batch: int) -> Streams:
    runs = [await _streams(url, batch) for _ in range(ROUNDS)]
    return Streams(tpot_s=median(r.tpot_s for r in runs), ttft_s=median(r.ttft_s for r in runs))


async def _work(unit: "_Unit") -> tuple[Work, Work]:
    """What scheduler and client run, from loads of which each has more of another thing."""
    done: list[tuple[int, int, int]] = []
    ran: list[tuple[float, float]] = []
    for batch, outputs, rounds in LOADS:
        scheduler, client = core_seconds(unit.scheduler), time.process_time()
        for _ in range(rounds):
            await _streams(unit.url, batch, outputs)
        ran.append((core_seconds(unit.scheduler) - scheduler, time.process_time() - client))
        done.append((rounds * outputs, rounds * batch * outputs, rounds * batch))
    return tuple(  # type: ignore[return-value]
        Work(**dict(zip(("step_s", "token_s", "request_s"), map(float, nnls(done, seconds)[0]),
                        strict=True)))
        for seconds in zip(*ran, strict=True)
    )  # fmt: skip


async def _streams(
    url: str, batch: int, outputs: int = OUTPUTS, *, models: Sequence[str] = MODELS[:1]
) -> Streams:
    """So many streams of each model at once."""
    async with open_session() as session:
        prompt = list(range(10, 10 + PROMPT))
        found = await asyncio.gather(
            *(
                stream(session, url, model, prompt, outputs)
                for model in models
                for _ in range(batch)
            )
        )
    for marks in found:
        if not marks.whole:
            raise PeerError(f"probe unit: {marks.error}")
    return Streams(tpot_s=median((m.last - m.first) / (outputs - 1) for m in found),
                   ttft_s=min(m.first - m.sent for m in found))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """A unit that serves: where, and the pid of its scheduler's process."""

    url: str
    scheduler: int


@asynccontextmanager
async def _unit(folder: Path, model: Path, percent: int) -> AsyncIterator[_Unit]:
    """A unit that serves the probe."""
    spec = UnitSpec(unit="profile", pool="profile", namespace="profile", generation=1,
                    incarnation=1, device=Device.CPU, gpus=1, memory_bytes=MEMORY,
                    members=tuple(
                        MemberSpec(model=name, served_name=name, path=str(model),
                                   prefill_percent=percent, decode_percent=percent)
                        for name in MODELS))  # fmt: skip
    file = folder / "spec.json"
    file.write_text(to_json(spec))
    http, internal, metrics, control = _free_ports(4)
    ended: list[tuple[Child, int]] = []
    children = Children(folder, lambda child, code: ended.append((child, code)))
    child = children.spawn("unit", [
        sys.executable, "-m", "mux_runtime", "unit", "--spec", str(file),
        "--run-dir", str(folder / "run"), "--host", HOST, "--http-port", str(http),
        "--internal-port", str(internal), "--metrics-port", str(metrics),
        "--control-port", str(control)])  # fmt: skip
    try:
        url = f"http://{HOST}:{http}"
        await _until_ready(url, children, child)
        yield _Unit(url=url, scheduler=_scheduler_of(child.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
        child.process.wait()
        children.reap()


def _scheduler_of(supervisor: int) -> int:
    """The child in which a unit's scheduler and front run."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = stat.read_text().rpartition(")")[2].split()[1]
            words = (stat.parent / "cmdline").read_bytes().split(b"\0")
            if int(parent) == supervisor and BRAIN.encode() in words:
                return int(stat.parent.name)
    raise PeerError(f"probe unit: no child of process {supervisor} is its scheduler")


def core_seconds(pid: int) -> float:
    """Seconds that a process ran on a core, its threads together."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


async def _until_ready(url: str, children: Children, child: Child) -> None:
    deadline = time.monotonic() + READY_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            children.reap()
            if children.find("unit") is None:
                raise PeerError(f"probe unit ended: {child.tail()}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/v1/models") as answer:
                    listed = {model["id"] for model in (await answer.json()).get("data", ())}
                    if listed.issuperset(MODELS):
                        return
            await asyncio.sleep(0.1)
    raise PeerError(f"probe unit: not ready after {READY_S:.0f} s: {child.tail()}")


def _free_ports(count: int) -> list[int]:
    socks = [socket.socket() for _ in range(count)]
    try:
        for sock in socks:
            sock.bind((HOST, 0))
        return [int(sock.getsockname()[1]) for sock in socks]
    finally:
        for sock in socks:
            sock.close()
