"""The units of manifests, started as `muxserve up` starts them, and what their metrics say."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc.aio

from mux_core.errors import PeerError
from mux_core.units import ModelName
from mux_core.unitspec import UnitSpec, from_json
from mux_operator.control_stubs import control_pb2 as pb
from mux_operator.control_stubs.control_pb2_grpc import UnitControlStub
from mux_operator.local.processes import tied

READY_S: Final = 300.0
SAMPLE_S: Final = 0.25
"""Between two looks at the KV in use, on the unit and in the simulator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningUnit:
    """One unit that serves: what it was told, and where it answers."""

    spec: UnitSpec
    url: str
    control: str


@contextmanager
def serving(manifests: Sequence[Path]) -> Iterator[tuple[RunningUnit, ...]]:
    """The units of `muxserve up`, ready; ended on leaving, or when this process is killed.
    PeerError with its words if not."""
    with tempfile.TemporaryDirectory(prefix="mux-validate-") as folder:
        data = Path(folder) / "d"
        server = _start(manifests, data)
        try:
            _wait_ready(server)
            yield _units(data)
        finally:
            server.end()


@dataclass(slots=True)
class _Server:
    """The process of `muxserve up`, its words kept and passed on."""

    process: subprocess.Popen[str]
    ready: threading.Event = field(default_factory=threading.Event)
    words: list[str] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self.readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def _start(manifests: Sequence[Path], data: Path) -> _Server:
    command = [sys.executable, "-m", "mux_cli.main", "up", "--port", "0", "--data-dir", str(data)]
    for path in manifests:
        command += ["-f", str(path)]
    server = _Server(subprocess.Popen(tied(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      text=True, start_new_session=True))  # fmt: skip
    for read in (_read_ready, _read_words):
        reader = threading.Thread(target=read, args=(server,), daemon=True)
        reader.start()
        server.readers.append(reader)
    return server


def _read_ready(server: _Server) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        if line.startswith("ready "):
            server.ready.set()
    server.ready.set()


def _read_words(server: _Server) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.words.append(line.rstrip())


def _wait_ready(server: _Server) -> None:
    if not server.ready.wait(READY_S) or server.process.poll() is not None:
        said = "\n  ".join(server.words[-8:])
        raise PeerError(f"the units did not become ready within {READY_S:.0f} s:\n  {said}")


def _units(data: Path) -> tuple[RunningUnit, ...]:
    from mux_operator.local.datadir import DataDir

    status = json.loads((data / "status.json").read_text(encoding="utf-8"))
    run = DataDir(data.resolve()).run
    found = []
    for unit in status["units"]:
        folder = run / f"{unit['unit']}-{unit['incarnation']}"
        spec = from_json((folder / "spec.json").read_text(encoding="utf-8"))
        found.append(RunningUnit(spec=spec, url=unit["url"], control=unit["control"]))
    return tuple(sorted(found, key=lambda unit: unit.spec.unit))


@dataclass(slots=True)
class KvWatch:
    """Samples what part of its unit's KV each model holds, until stopped.

    Over the control port: a page of metrics keeps scheduler and client from their work for tens of
    milliseconds, which is more than many a latency that is measured.
    """

    units: Sequence[RunningUnit]
    samples: dict[ModelName, list[tuple[float, float]]] = field(default_factory=dict)

    async def run(self) -> None:
        """Samples until cancelled; moments count from now on."""
        began = time.perf_counter()
        await asyncio.gather(*(self._follow(unit, began) for unit in self.units))

    async def _follow(self, unit: RunningUnit, began: float) -> None:
        async with grpc.aio.insecure_channel(unit.control) as channel:
            async for told in UnitControlStub(channel).Watch(pb.WatchRequest(interval_s=SAMPLE_S)):
                at = time.perf_counter() - began
                for model, part in kv_parts(told).items():
                    self.samples.setdefault(model, []).append((at, part))

    def mean(self, model: ModelName, begin: float, end: float) -> float:
        """The mean part over a window; 0 without a sample."""
        inside = [part for at, part in self.samples.get(model, ()) if begin <= at < end]
        return sum(inside) / len(inside) if inside else 0.0


def kv_parts(told: pb.UnitStatus) -> Mapping[ModelName, float]:
    """Each model's part of the unit's KV."""
    total = told.kv_total_bytes
    return {ModelName(m.model): m.kv_used_bytes / total for m in told.members} if total else {}


def load_average() -> float:
    """Of the last minute; whoever reads a table must know what else ran."""
    return os.getloadavg()[0]
