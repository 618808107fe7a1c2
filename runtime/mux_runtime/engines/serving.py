"""The host process's end of the wire: hello, then one answer per call, until the socket ends.

Knows no engine in particular; imports nothing but the standard library and our own values, so a
process says hello and describes its model before it pays for its back-end.
"""

import os
import socket
from typing import Final, Protocol

from mux_core.errors import InvariantError, MuxError, SpecError
from mux_runtime import wire
from mux_runtime.engines.host import (
    BadGrant,
    EngineDescription,
    EngineFault,
    EngineHost,
    Hello,
    RequestRefused,
)

OK: Final = 0
FAULT: Final = 1
REFUSED: Final = 2
"""Exit code after an error that the same arguments would meet again."""

_HEALTHY: Final = (RequestRefused, BadGrant)


class EngineStart(Protocol):
    """How a back-end is started, in two steps."""

    def describe(self) -> EngineDescription:
        """Reads the checkpoint's config; takes milliseconds."""
        ...

    def open(self) -> EngineHost:
        """Imports the back-end, maps the pool, loads or maps the weights."""
        ...


class HostServer:
    """Answers the scheduler's calls with one engine."""

    def __init__(self, start: EngineStart) -> None:
        self._start = start
        self._engine: EngineHost | None = None

    def answer(self, call: wire.Message) -> wire.Message:
        """Raises MuxError as the engine does; the caller decides what ends the process."""
        match call["call"]:
            case "describe":
                return wire.encode_description(self._start.describe())
            case "open":
                self._engine = self._start.open()
                return wire.encode_description(self._start.describe())
            case "add":
                return self._add(call)
            case "step":
                return wire.encode_result(self._opened().step(wire.decode_grant(call["grant"])))
            case "abort":
                kv = self._opened().abort(call["rid"])
                return {"kv": None if kv is None else wire.encode_handoff(kv)}
            case "stats":
                stats = self._opened().stats()
                return {"stats": {name: getattr(stats, name) for name in stats.__slots__}}
            case "close":
                self.close()
                return {}
            case other:
                raise EngineFault(f"engine host: unknown call {other!r}; is the scheduler of "
                                  "another release?")  # fmt: skip

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _add(self, call: wire.Message) -> wire.Message:
        kv = None if call["kv"] is None else wire.decode_handoff(call["kv"])
        self._opened().add(
            call["rid"], call["tokens"], wire.decode_sampling(call["sampling"]),
            prompt_len=call["prompt_len"], kv=kv, detach=call["detach"],
        )  # fmt: skip
        return {}

    def _opened(self) -> EngineHost:
        if self._engine is None:
            raise EngineFault("engine host: called before open")
        return self._engine


def serve(path: str, hello: Hello, start: EngineStart) -> int:
    """Connects to the scheduler at `path` and serves until it closes; the exit code."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(path)
            wire.send(sock, wire.encode_hello(hello))
        except OSError:
            return OK  # The scheduler is gone, and with it every reason to live.
        try:
            return _serve(sock, HostServer(start))
        except ConnectionError:
            return OK


def _serve(sock: socket.socket, server: HostServer) -> int:
    while (call := wire.receive(sock)) is not None:
        try:
            reply, code = server.answer(call), None
        except MuxError as error:
            reply, code = wire.encode_error(error), _exit_code(error)
        except Exception as error:
            fault = EngineFault(f"engine host {os.getpid()}: {type(error).__name__}: {error}")
            wire.send(sock, wire.encode_error(fault))
            raise
        wire.send(sock, reply)
        if code is not None:
            return code
        if call["call"] == "close":
            break
    server.close()
    return OK


def _exit_code(error: MuxError) -> int | None:
    """None while the host stays healthy."""
    if isinstance(error, _HEALTHY):
        return None
    return (
        REFUSED if isinstance(error, SpecError) and not isinstance(error, InvariantError) else FAULT
    )
