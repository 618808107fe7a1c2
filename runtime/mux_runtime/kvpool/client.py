"""The pool as seen from an engine host or the scheduler: mapped memory, and who may write it.

Blocking and standard library only, so that an engine host can use it. A process that ends, however
it ends, drops its mappings; a weight arena it was still loading is then dropped by the owner.
"""

import mmap
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self

from mux_core.errors import CapacityError, InvariantError, MuxError, PeerError, SpecError
from mux_runtime.kvpool import wire

_RETRY_S: Final = 0.02


class Role(StrEnum):
    """What `attach` made of the caller."""

    LOADER = "loader"
    READER = "reader"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """Memory shared with other processes, mapped here until closed or until this process ends.

    Views of `buffer` keep it from closing.
    """

    buffer: mmap.mmap
    nbytes: int

    def close(self) -> None:
        self.buffer.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightArena(Arena):
    """One model's weights. A LOADER's is zeros to fill and then to seal; a READER's is read-only
    and has the digest its loader gave."""

    name: str
    role: Role
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """What the owner holds: bytes of each arena, and pages of the KV arena in use."""

    kv_bytes: int
    kv_resident_bytes: int
    sealed: Mapping[str, int]
    loading: Mapping[str, int]
    backing: str


class PoolClient:
    """One connection to the pool owner. One thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def connect(cls, path: str, *, timeout_s: float = 10.0) -> Self:
        """Connects, waiting up to `timeout_s` for the owner to listen. Raises PeerError."""
        deadline = time.monotonic() + timeout_s
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(path)
                return cls(sock)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                sock.close()
                if time.monotonic() >= deadline:
                    raise PeerError(f"pool owner: nobody listens on {path} after {timeout_s} s; "
                                    "start `python -m mux_runtime pool`") from error  # fmt: skip
            except BaseException:
                sock.close()
                raise
            time.sleep(_RETRY_S)

    def map_kv(self) -> Arena:
        """The KV arena, to read and write: head unit `i` starts at byte `i * unit_bytes`."""
        reply, fd = self._call({"op": "kv"})
        return Arena(buffer=_map(fd, reply["bytes"], writable=True), nbytes=reply["bytes"])

    def attach(self, name: str, nbytes: int) -> WeightArena:
        """The weight arena `name` of `nbytes` bytes, for whoever comes first to load.

        The first caller is the LOADER. Others wait until it has sealed the arena and become
        READERs; if it dies first, the next waiting one is the LOADER. Raises SpecError when the
        arena exists in another size, CapacityError when there is no memory for it.
        """
        reply, fd = self._call({"op": "attach", "name": name, "bytes": nbytes})
        role = Role(reply["role"])
        buffer = _map(fd, nbytes, writable=role is Role.LOADER)
        return WeightArena(buffer=buffer, nbytes=nbytes, name=name, role=role,
                           digest=reply["digest"])  # fmt: skip

    def seal(self, name: str, digest: str) -> None:
        """Ends loading: from now on the arena outlives this process and is given out read-only.

        The caller's own mapping stays writable; close it and attach again to share the others'.
        """
        self._call({"op": "seal", "name": name, "digest": digest})

    def drop(self, name: str) -> bool:
        """Forgets a weight arena; its memory goes with its last mapping. False if unknown."""
        reply, _ = self._call({"op": "drop", "name": name})
        return bool(reply["dropped"])

    def punch(self, start: int, length: int) -> None:
        """Gives the whole pages within these bytes of the KV arena back; they read as zeros."""
        self._call({"op": "punch", "start": start, "length": length})

    def state(self) -> PoolState:
        reply, _ = self._call({"op": "state"})
        return PoolState(**reply)

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    def _call(self, request: wire.Message) -> tuple[wire.Message, int | None]:
        try:
            wire.send(self._sock, request)
            reply, fd = wire.receive(self._sock)
        except OSError as error:
            raise PeerError(f"pool owner: {error}; it ended") from error
        if "error" in reply:
            raise _error(reply)
        return reply, fd


def _error(reply: wire.Message) -> MuxError:
    """The owner's refusal as the exception it raised."""
    message: str = reply["message"]
    match reply["error"]:
        case "spec":
            return SpecError(message)
        case "capacity":
            return CapacityError(message, reason=reply["reason"])
        case "invariant":
            return InvariantError(message)
        case other:
            return PeerError(f"pool owner: {other}: {message}")


def _map(fd: int | None, nbytes: int, *, writable: bool) -> mmap.mmap:
    if fd is None:
        raise PeerError("pool owner: a reply without its descriptor; out of file descriptors?")
    access: dict[str, Any] = {
        "flags": mmap.MAP_SHARED,
        "prot": mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0),
    }
    try:
        return mmap.mmap(fd, nbytes, **access)
    finally:
        os.close(fd)
