"""A unit that is started to be timed, and what its processes have run so far."""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from mux_core.engine import Phase
from mux_core.errors import PeerError
from mux_core.unitspec import Device, MemberSpec, UnitSpec, to_json
from mux_runtime.supervisor.children import Child, Children
from mux_runtime.supervisor.main import BRAIN

_LIBC: Final = ctypes.CDLL(None)
HOST: Final = "127.0.0.1"
READY_S: Final = 180.0

EngineHost = tuple[str, Phase]
"""The engine host of a model's phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToServe:
    """Models for a unit: folders of checkpoints with a tokenizer, by name; and bytes for all."""

    models: Mapping[str, Path]
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeUnit:
    """A unit that serves: where, its models under the names it has for them, and the pids of its
    processes."""

    url: str
    metrics_url: str
    models: Mapping[str, str]
    scheduler: int
    hosts: Mapping[EngineHost, int]

    async def steps(self, model: str) -> dict[Phase, int]:
        """Steps that the model's engine hosts have run so far."""
        async with aiohttp.ClientSession() as session, session.get(self.metrics_url) as answer:
            text = await answer.text()
        return {
            Phase(sample.labels["phase"]): int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "muxserve_unit_grants_total"
            and sample.labels["model_name"] == self.models[model]
        }

    def host_seconds(self, model: str) -> dict[Phase, float]:
        """Seconds of a core that they have run so far."""
        return {phase: core_seconds(self.hosts[self.models[model], phase]) for phase in Phase}


@asynccontextmanager
async def open_unit(
    folder: Path, given: ToServe, percent: int
) -> AsyncIterator[ProbeUnit]:  # fmt: skip
    """A unit that serves what is given; every phase has `percent`. `folder` exists."""
    # A profile's models are named as their folders are, which a unit may not take.
    names = {model: f"model-{number}" for number, model in enumerate(given.models)}
    spec = UnitSpec(unit="profile", pool="profile", namespace="profile", generation=1,
                    incarnation=1, device=Device.CPU, gpus=1, memory_bytes=given.memory,
                    members=tuple(
                        MemberSpec(model=names[model], served_name=names[model], path=str(path),
                                   prefill_percent=percent, decode_percent=percent)
                        for model, path in given.models.items()))  # fmt: skip
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
        await _until_ready(url, names.values(), children, child)
        scheduler, hosts = _processes(child.pid)
        yield ProbeUnit(url=url, metrics_url=f"http://{HOST}:{metrics}/metrics", models=names,
                        scheduler=scheduler, hosts=hosts)  # fmt: skip
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
        child.process.wait()
        children.reap()


def core_seconds(pid: int) -> float:
    """Seconds that a process ran on a core, all its threads together, ended ones too. PeerError
    where it is gone. clock_getcpuclockid(3)."""
    clock = ctypes.c_int()
    if _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise PeerError(f"probe unit: process {pid} is gone")
    return time.clock_gettime(clock.value)


def _processes(supervisor: int) -> tuple[int, dict[EngineHost, int]]:
    """The children in which a unit's scheduler and front, and its engine hosts run."""
    scheduler, hosts = 0, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = stat.read_text().rpartition(")")[2].split()[1]
            if int(parent) != supervisor:
                continue
            words = (stat.parent / "cmdline").read_bytes().decode().split("\0")
            if BRAIN in words:
                scheduler = int(stat.parent.name)
            elif "--host-id" in words:
                model, phase, _ = words[words.index("--host-id") + 1].rsplit("-", 2)
                hosts[model, Phase(phase)] = int(stat.parent.name)
    if not scheduler or not hosts:
        raise PeerError(f"probe unit: process {supervisor} has no scheduler or no engine hosts "
                        "among its children")  # fmt: skip
    return scheduler, hosts


async def _until_ready(
    url: str, names: Collection[str], children: Children, child: Child
) -> None:  # fmt: skip
    deadline = time.monotonic() + READY_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            children.reap()
            if children.find("unit") is None:
                raise PeerError(f"probe unit ended: {child.tail()}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/v1/models") as answer:
                    listed = {model["id"] for model in (await answer.json()).get("data", ())}
                    if listed.issuperset(names):
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
