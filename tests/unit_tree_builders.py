"""A whole unit as processes of this machine, and a client that reads its streams.

Everything is what ships: `python -m mux_runtime unit` with real engine hosts over tiny models.
"""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import psutil

from mux_core.unitspec import Device, MemberSpec, UnitSpec, to_json
from mux_runtime.control import control_pb2 as pb
from mux_runtime.control.control_pb2_grpc import UnitControlStub

HOST = "127.0.0.1"
PATIENCE_S = 150.0


def unit_spec(members: Sequence[MemberSpec], *, generation: int = 1, **changes: Any) -> UnitSpec:
    return UnitSpec(**{
        "unit": "u", "pool": "p", "namespace": "n", "generation": generation, "incarnation": 1,
        "device": Device.CPU, "gpus": 1, "memory_bytes": 64 << 20,
        "members": tuple(members)} | changes)  # fmt: skip


def member(model: str, path: Path, **changes: Any) -> MemberSpec:
    return MemberSpec(**{
        "model": model, "served_name": model, "path": str(path), "prefill_percent": 60,
        "decode_percent": 30, "drain_timeout_s": 20.0} | changes)  # fmt: skip


def free_ports(count: int) -> list[int]:
    socks = [socket.socket() for _ in range(count)]
    for sock in socks:
        sock.bind((HOST, 0))
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


@dataclass
class UnitTree:
    """One unit from start to its last process."""

    folder: Path
    spec: UnitSpec
    ports: list[int] = field(default_factory=lambda: free_ports(4))
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def start(self) -> None:
        self.start_from(to_json(self.spec))

    def start_from(self, text: str) -> None:
        """Starts with that spec file, whatever it holds."""
        file = self.folder / "spec.json"
        file.write_text(text)
        http, internal, metrics, control = map(str, self.ports)
        self.started_at = time.monotonic()
        with (self.folder / "supervisor.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mux_runtime", "unit", "--spec", str(file),
                 "--run-dir", str(self.run_dir), "--host", HOST, "--http-port", http,
                 "--internal-port", internal, "--metrics-port", metrics,
                 "--control-port", control],
                stdout=log, stderr=log,
            )  # fmt: skip

    def wait_for_port(self, port: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((HOST, port)):
                return
            time.sleep(0.05)
        raise AssertionError(f"nobody listens on {port}\n{self.logs()}")

    @property
    def root(self) -> psutil.Process:
        assert self.process is not None
        return psutil.Process(self.process.pid)

    def processes(self) -> list[psutil.Process]:
        return [self.root, *self.root.children(recursive=True)]

    def pss_mib(self) -> float:
        """Resident memory of the tree, shared pages counted once."""
        return sum(p.memory_full_info().pss for p in self.processes()) / (1 << 20)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, list[psutil.Process]]:
        """Ends the unit; its exit code and the processes that outlived it."""
        assert self.process is not None
        tree = self.processes() if self.process.poll() is None else []
        self.process.send_signal(number)
        code = self.process.wait(timeout=PATIENCE_S)
        _, alive = psutil.wait_procs(tree, timeout=5)
        return code, alive

    def kill(self) -> None:
        """For teardown: whatever is left ends now."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def logs(self) -> str:
        files = [self.folder / "supervisor.log", self.run_dir / "logs" / "brain.log"]
        return "\n".join(f"--- {f.name}\n{f.read_text()[-4000:]}" for f in files if f.exists())

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator["Client"]:
        channel = grpc.aio.insecure_channel(f"{HOST}:{self.ports[3]}")
        async with aiohttp.ClientSession(f"http://{HOST}:{self.ports[0]}") as session:
            try:
                yield Client(self, session, UnitControlStub(channel))
            finally:
                await channel.close(None)


@dataclass
class Client:
    """Speaks HTTP and UnitControl to one unit."""

    tree: UnitTree
    session: aiohttp.ClientSession
    control: UnitControlStub

    async def status(self) -> pb.UnitStatus:
        call = self.control.Watch(pb.WatchRequest(interval_s=1.0), wait_for_ready=True)
        async for status in call:
            call.cancel()
            return status
        raise AssertionError("the watch ended without a status")

    async def until(self, holds: Callable[[pb.UnitStatus], bool]) -> pb.UnitStatus:
        """The first status that satisfies; fails with the unit's logs."""
        last = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                watch = pb.WatchRequest(interval_s=0.2)
                while True:
                    try:
                        async for last in self.control.Watch(watch, wait_for_ready=True):
                            if holds(last):
                                return last
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"never came true: {last}\n{self.tree.logs()}") from None

    async def serving(self, *models: str) -> pb.UnitStatus:
        return await self.until(lambda s: {
            m.model for m in s.members if m.state == "Serving"} >= set(models))  # fmt: skip

    async def idle(self) -> pb.UnitStatus:
        """Everything finished and every KV unit free again."""
        return await self.until(lambda s: all(m.running + m.waiting == 0 for m in s.members)
                                and s.kv_free_bytes == s.kv_total_bytes)  # fmt: skip

    async def apply(self, *members: MemberSpec, **changes: Any) -> pb.ApplyReply:
        spec = replace(self.tree.spec, generation=self.tree.spec.generation + 1,
                       members=tuple(members), **changes)  # fmt: skip
        reply = await self.control.Apply(pb.ApplyRequest(spec_json=to_json(spec)))
        if reply.accepted:
            self.tree.spec = spec
        return reply

    async def tokens(
        self, model: str, prompt: Sequence[int], count: int, *, stop_after: int | None = None
    ) -> list[int]:
        """Greedy tokens of one streamed completion; left early after `stop_after` of them."""
        body = {"model": model, "prompt": list(prompt), "max_tokens": count, "temperature": 0,
                "stream": True, "ignore_eos": True, "return_token_ids": True}  # fmt: skip
        tokens: list[int] = []
        async with self.session.post("/v1/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                data = line.removeprefix(b"data: ").strip()
                if not data or data == b"[DONE]":
                    continue
                event = json.loads(data)
                assert "error" not in event, event
                for choice in event["choices"]:
                    tokens.extend(choice.get("token_ids") or [])
                if stop_after is not None and len(tokens) >= stop_after:
                    return tokens
        return tokens

    async def metric(self, name: str) -> dict[str, float]:
        """Samples of one series by their labels as written."""
        url = f"http://{HOST}:{self.tree.ports[2]}/metrics"
        async with self.session.get(url) as answer:
            text = await answer.text()
        lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
        return {key.removeprefix(name): float(value) for key, _, value in lines}
