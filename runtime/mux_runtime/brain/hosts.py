"""Engine hosts as processes: spawned by the supervisor, heard on the hosts socket.

A host is known by its name, `model-phase-epoch`; the epoch makes every life a different one, so
that a late hello or exit of a former process is nobody's.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from mux_core.engine import Grant, KVHandoff, Sampling, StepResult
from mux_core.errors import PeerError
from mux_core.unitspec import MemberSpec
from mux_runtime.brain.gates import StartGate
from mux_runtime.engines.host import EngineDescription
from mux_runtime.scheduler.links import Host, HostOrder
from mux_runtime.sm.partition import SmPartitioner
from mux_runtime.supervisor import protocol
from mux_runtime.supervisor.main import UnitPaths
from mux_runtime.wire import HostLink

_log = logging.getLogger(__name__)

_HELLO_S: Final = 60.0
_OPEN_S: Final = 900.0


@dataclass(slots=True, kw_only=True, eq=False)
class HostProcess:
    """One life of a host; keeps `mux_runtime.scheduler.links.Host`.

    `check_share` is given its pid and the SMs it sees; it raises when those are not its share.
    """

    name: str
    leave: Callable[[], None]
    check_share: Callable[[int, int], None]
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    hello: "asyncio.Future[HostLink]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    pid: int = 0
    sms: int = 0
    ending: str = ""
    starting: bool = True

    @property
    def link(self) -> HostLink:
        return self.hello.result()

    async def describe(self) -> EngineDescription:
        try:
            async with asyncio.timeout(_HELLO_S):
                return await self.link.describe()
        except TimeoutError as error:
            raise PeerError(f"host {self.name}: no answer after {_HELLO_S:.0f} s") from error

    async def open(self) -> EngineDescription:
        try:
            async with asyncio.timeout(_OPEN_S):
                card = await self.link.open()
                self.sms = (await self.link.stats()).sms
                await asyncio.to_thread(self.check_share, self.pid, self.sms)
                return card
        except TimeoutError as error:
            raise PeerError(f"host {self.name}: not open after {_OPEN_S:.0f} s") from error
        except PeerError as error:
            raise PeerError(f"{error}{await self._last_words()}") from error
        finally:
            self.started()

    async def add(self, rid: str, token_ids: Sequence[int], sampling: Sampling, *, prompt_len: int,
                  kv: KVHandoff | None = None, detach: bool = False) -> None:  # fmt: skip
        await self.link.add(rid, token_ids, sampling, prompt_len=prompt_len, kv=kv, detach=detach)

    async def step(self, grant: Grant) -> StepResult:
        return await self.link.step(grant)

    async def abort(self, rid: str) -> KVHandoff | None:
        return await self.link.abort(rid)

    def started(self) -> None:
        """Lets the next one start; may be called again."""
        if self.starting:
            self.starting = False
            self.leave()

    def exited(self, code: int, tail: str) -> None:
        self.ending = f"ended with code {code}" + (f": {tail}" if tail else "")
        self.gone.set()
        self.lost.set()
        if not self.hello.done():
            self.hello.set_exception(PeerError(f"host {self.name}: {self.ending}"))
            self.hello.exception()  # Read here: nobody may be waiting any more.

    async def _last_words(self) -> str:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.gone.wait(), 1.0)
        return f" ({self.ending})" if self.ending else ""


class SupervisedHosts:
    """Starts and ends hosts by asking the supervisor; keeps `HostStarter`.

    `wanted` gives a model's present spec. `drop_weights` drops an arena of the pool owner.
    """

    def __init__(self, *, paths: UnitPaths, gate: StartGate, unit_bytes: int,
                 wanted: Callable[[str], MemberSpec],
                 drop_weights: Callable[[str], None], partition: SmPartitioner,
                 device: str = "cpu") -> None:  # fmt: skip
        self._paths = paths
        self._gate = gate
        self._unit_bytes = unit_bytes
        self._wanted = wanted
        self._drop_weights = drop_weights
        self._partition = partition
        self._device = device
        self._alive: dict[str, HostProcess] = {}
        self._arenas: dict[str, str] = {}
        self._supervisor: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None
        self._listening: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Meets the supervisor and listens for hosts."""
        reader, self._supervisor = await asyncio.open_unix_connection(self._paths.supervisor_socket)
        self._listening = asyncio.create_task(self._listen(reader))
        self._server = await asyncio.start_unix_server(self._welcome, self._paths.hosts_socket)

    async def close(self) -> None:
        for task in (self._listening,):
            if task is not None:
                task.cancel()
        if self._server is not None:
            self._server.close()
        if self._supervisor is not None:
            self._supervisor.close()

    async def start(self, order: HostOrder) -> Host:
        await self._gate.enter()
        name = _name(order)
        check = partial(self._check_share, name, order.percent)
        process = HostProcess(name=name, leave=self._gate.leave, check_share=check)
        self._alive[name] = process
        self._ask({"op": "start", "name": name, "argv": self._argv(order),
                   "env": self._partition.environment(order.percent)})  # fmt: skip
        try:
            async with asyncio.timeout(_HELLO_S):
                await process.hello
        except TimeoutError as error:
            raise PeerError(f"host {name}: no hello after {_HELLO_S:.0f} s") from error
        return process

    async def end(self, order: HostOrder) -> None:
        process = self._alive.get(_name(order))
        if process is None:
            return
        await asyncio.to_thread(self._partition.release, process.pid)
        self._ask({"op": "kill", "name": process.name})
        await process.gone.wait()
        process.started()
        del self._alive[process.name]
        if process.hello.done() and not process.hello.exception():
            process.link.disconnect()

    async def forget(self, model: str) -> None:
        arena = self._arenas.pop(model, None)
        if arena is not None:
            await asyncio.to_thread(self._drop_weights, arena)

    def _ask(self, message: protocol.Message) -> None:
        assert self._supervisor is not None
        self._supervisor.write(protocol.encode(message))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = protocol.decode(line)
            process = self._alive.get(message["name"])
            if process is None:
                continue
            process.pid = message["pid"]
            if message["event"] == "exited":
                process.exited(message["code"], message["tail"])
        _log.error("supervisor_gone")
        os._exit(1)  # Nobody reaps any more; PDEATHSIG ends this process anyway.

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            link = await HostLink.accept(reader, writer)
        except PeerError as error:
            _log.warning("hello_refused %s", error)
            writer.close()
            return
        process = self._alive.get(link.hello.host_id)
        if process is None or process.hello.done():
            link.disconnect()
            return
        process.pid = link.hello.pid
        process.hello.set_result(link)

    def _argv(self, order: HostOrder) -> list[str]:
        spec = self._wanted(order.model)
        arena = f"{order.model}:{spec.path}:{spec.dtype}"
        self._arenas[order.model] = arena
        argv = [
            sys.executable, "-m", "mux_runtime.engines.torch",
            "--connect", str(self._paths.hosts_socket), "--pool", str(self._paths.pool_socket),
            "--host-id", _name(order), "--epoch", str(order.epoch), "--phase", order.phase.value,
            "--model-dir", spec.path, "--arena", arena, "--dtype", spec.dtype,
            "--unit-bytes", str(self._unit_bytes), "--device", self._device,
            "--threads", str(threads(order.percent)),
        ]  # fmt: skip
        if spec.max_model_len is not None:
            argv += ["--max-model-len", str(spec.max_model_len)]
        return argv

    def _check_share(self, name: str, percent: int, pid: int, sms: int) -> None:
        self._partition.verify(name, pid=pid, percent=percent, seen_sms=sms)


def threads(percent: int, cores: int | None = None) -> int:
    """Threads for an SM share on CPU: that part of the cores, at least one."""
    return max(1, round((cores or len(os.sched_getaffinity(0))) * percent / 100))


def _name(order: HostOrder) -> str:
    return f"{order.model}-{order.phase.value}-{order.epoch}"
