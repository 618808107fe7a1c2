"""`python -m mux_runtime pool`: the process that holds a unit's KV and weight arenas.

KV and weights are charged to one account, the arena's bytes: all weights together never take more
than those. The owner computes nothing and touches no page, so that it stays small and outlives
every engine. One thread, one message in flight per connection:

    kv                        -> bytes                      + descriptor to read and write
    attach name bytes         -> role loader|reader, digest + descriptor to write | read-only
    seal name digest          -> {}
    drop name                 -> dropped
    punch start length        -> {}
    state                     -> the fields of client.PoolState

`attach` is answered when the caller can go on: at once as loader or of a sealed arena, else when
the present loader has sealed or is gone.
"""

import argparse
import contextlib
import ctypes
import itertools
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mux_core.errors import CapacityError, InvariantError, MuxError, PeerError, SpecError
from mux_runtime.kvpool import wire
from mux_runtime.kvpool.arenas import KvArena, WeightBook

_PR_SET_PDEATHSIG: Final = 1
_REPLY_TIMEOUT_S: Final = 5.0
"""A client that does not read its reply for so long is cut off; it stops everybody else."""

Answer = tuple[wire.Message, int | None]


@dataclass(slots=True, kw_only=True)
class _Client:
    sock: socket.socket
    received: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """An `attach` that is held until another connection has loaded."""

    client: int
    name: str
    nbytes: int


class PoolOwner:
    """Serves the arenas on a listening Unix socket."""

    def __init__(self, listener: socket.socket, kv: KvArena) -> None:
        self._listener = listener
        self._kv = kv
        self._weights = WeightBook(limit=kv.nbytes)
        self._clients: dict[int, _Client] = {}
        self._ids = itertools.count(1)
        self._waiting: list[_Waiting] = []
        self._selector = selectors.DefaultSelector()
        self._operations: dict[str, Callable[[int, wire.Message], Answer | None]] = {
            "kv": self._give_kv, "attach": self._attach, "seal": self._seal, "drop": self._drop,
            "punch": self._punch, "state": self._state,
        }  # fmt: skip

    def serve_forever(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._receive(key.data)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.settimeout(_REPLY_TIMEOUT_S)
        client = next(self._ids)
        self._clients[client] = _Client(sock=sock)
        self._selector.register(sock, selectors.EVENT_READ, client)

    def _receive(self, client: int) -> None:
        if client not in self._clients:
            return  # cut off since the selector reported it
        received = self._clients[client].received
        try:
            data = self._clients[client].sock.recv(wire.MAX_MESSAGE)
            received += data
            if not data:
                self._forget(client)
            while client in self._clients and (message := wire.take(received)) is not None:
                self._serve(client, message)
        except (OSError, ValueError, PeerError) as error:
            _log(f"connection cut off: {error}")
            self._forget(client)

    def _serve(self, client: int, message: wire.Message) -> None:
        """Answers one message, then whoever this lets go on."""
        try:
            answer = self._perform(client, message)
        except MuxError as error:
            answer = _refusal(error), None
        if answer is not None:
            self._reply(client, answer)
        self._wake()

    def _perform(self, client: int, message: wire.Message) -> Answer | None:
        operation = self._operations.get(str(message.get("op")))
        if operation is None:
            raise SpecError(f"pool owner: operation {message.get('op')!r}; "
                            f"there are {sorted(self._operations)}")  # fmt: skip
        try:
            return operation(client, message)
        except (KeyError, TypeError) as error:
            raise SpecError(
                f"pool owner: {message['op']} without or with a wrong {error}"
            ) from error

    def _reply(self, client: int, answer: Answer) -> None:
        message, fd = answer
        try:
            wire.send(self._clients[client].sock, message, fd)
        except OSError as error:
            _log(f"connection cut off, its reply was not read: {error}")
            self._forget(client)

    def _wake(self) -> None:
        """Tries held attaches again, in order; the first after a dead loader becomes the loader."""
        held, self._waiting = self._waiting, []
        for waiting in held:
            if waiting.client not in self._clients:
                continue
            try:
                answer = self._attach_now(waiting)
            except MuxError as error:
                answer = _refusal(error), None
            if answer is None:
                self._waiting.append(waiting)
            else:
                self._reply(waiting.client, answer)

    def _forget(self, client: int) -> None:
        gone = self._clients.pop(client, None)
        if gone is None:
            return
        self._selector.unregister(gone.sock)
        gone.sock.close()
        self._weights.drop_unsealed_of(client)
        self._wake()

    def _give_kv(self, client: int, message: wire.Message) -> Answer:
        return {"bytes": self._kv.nbytes}, self._kv.fd

    def _attach(self, client: int, message: wire.Message) -> Answer | None:
        waiting = _Waiting(client=client, name=str(message["name"]), nbytes=int(message["bytes"]))
        answer = self._attach_now(waiting)
        if answer is None:
            self._waiting.append(waiting)
        return answer

    def _attach_now(self, wanted: _Waiting) -> Answer | None:
        file = self._weights.find(wanted.name, wanted.nbytes)
        if file is None:
            file = self._weights.create(wanted.name, wanted.nbytes, loader=wanted.client)
            return {"role": "loader", "digest": ""}, file.fd
        if not file.is_sealed:
            return None
        return {"role": "reader", "digest": file.digest}, file.fd

    def _seal(self, client: int, message: wire.Message) -> Answer:
        self._weights.seal(str(message["name"]), str(message["digest"]), loader=client)
        return {}, None

    def _drop(self, client: int, message: wire.Message) -> Answer:
        return {"dropped": self._weights.drop(str(message["name"]))}, None

    def _punch(self, client: int, message: wire.Message) -> Answer:
        self._kv.punch(int(message["start"]), int(message["length"]))
        return {}, None

    def _state(self, client: int, message: wire.Message) -> Answer:
        return {
            "kv_bytes": self._kv.nbytes,
            "kv_resident_bytes": self._kv.resident_bytes,
            "sealed": self._weights.sizes(sealed=True),
            "loading": self._weights.sizes(sealed=False),
            "backing": self._kv.backing,
        }, None


def _refusal(error: MuxError) -> wire.Message:
    match error:
        case CapacityError():
            return {"error": "capacity", "message": str(error), "reason": error.reason}
        case SpecError():
            return {"error": "spec", "message": str(error)}
        case InvariantError():
            return {"error": "invariant", "message": str(error)}
        case _:
            return {"error": type(error).__name__, "message": str(error)}


def listen(path: str) -> socket.socket:
    """A listening Unix socket; one that a dead owner left behind is replaced."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen()
    return listener


def end_with_parent() -> None:
    """Has the kernel end this process when its parent ends, also if that was a moment ago."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m mux_runtime pool")
    parser.add_argument("--socket", required=True, help="Unix socket to serve")
    parser.add_argument("--arena-bytes", required=True, type=int, help="size of the KV arena")
    arguments = parser.parse_args(argv)
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    kv = KvArena(arguments.arena_bytes)
    with listen(arguments.socket) as listener:
        _log(f"serving {kv.nbytes} bytes of KV ({kv.backing}) on {arguments.socket}")
        try:
            PoolOwner(listener, kv).serve_forever()
        finally:
            os.unlink(arguments.socket)
    return 0


def _log(text: str) -> None:
    print(f"pool owner: {text}", file=sys.stderr, flush=True)
