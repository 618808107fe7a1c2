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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import aiohttp

from mux_core.costmodel.profile_set import UnitCost
from mux_core.errors import PeerError
from mux_core.unitspec import Device, MemberSpec, UnitSpec, to_json
from mux_runtime.profiling.client import open_session, stream
from mux_runtime.supervisor.children import Child, Children

HOST: Final = "127.0.0.1"
MODEL: Final = "probe"
MEMORY: Final = 256 << 20
READY_S: Final = 180.0
BATCHES: Final = (1, 8)
OUTPUTS: Final = 60
PROMPT: Final = 16
ROUNDS: Final = 5
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
    async with _unit(folder, model, percent) as url:
        await _streams(url, 1)
        one, many = [await _median_streams(url, batch) for batch in BATCHES]
    few, lots = BATCHES
    beyond = [max(0.0, s.tpot_s - own)
              for s, own in zip((one, many), engine.decode_s, strict=True)]  # fmt: skip
    token = max(0.0, (beyond[1] - beyond[0]) / (lots - few))
    return UnitCost(step_s=max(0.0, beyond[0] - token), token_s=token,
                    request_s=max(0.0, one.ttft_s - engine.prefill_s))  # fmt: skip


async def _median_streams(url: str, batch: int) -> Streams:
    runs = [await _streams(url, batch) for _ in range(ROUNDS)]
    return Streams(tpot_s=median(r.tpot_s for r in runs), ttft_s=median(r.ttft_s for r in runs))


async def _streams(url: str, batch: int) -> Streams:
    async with open_session() as session:
        prompt = list(range(10, 10 + PROMPT))
        found = await asyncio.gather(
            *(stream(session, url, MODEL, prompt, OUTPUTS) for _ in range(batch))
        )
    for marks in found:
        if not marks.whole:
            raise PeerError(f"probe unit: {marks.error}")
    return Streams(tpot_s=median((m.last - m.first) / (OUTPUTS - 1) for m in found),
                   ttft_s=min(m.first - m.sent for m in found))  # fmt: skip


@asynccontextmanager
async def _unit(folder: Path, model: Path, percent: int) -> AsyncIterator[str]:
    """A unit that serves the probe; its URL."""
    spec = UnitSpec(unit="profile", pool="profile", namespace="profile", generation=1,
                    incarnation=1, device=Device.CPU, gpus=1, memory_bytes=MEMORY,
                    members=(MemberSpec(model=MODEL, served_name=MODEL, path=str(model),
                                        prefill_percent=percent, decode_percent=percent),)
                    )  # fmt: skip
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
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
        child.process.wait()
        children.reap()


async def _until_ready(url: str, children: Children, child: Child) -> None:
    deadline = time.monotonic() + READY_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            children.reap()
            if children.find("unit") is None:
                raise PeerError(f"probe unit ended: {child.tail()}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/v1/models") as answer:
                    if any(m["id"] == MODEL for m in (await answer.json()).get("data", ())):
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
