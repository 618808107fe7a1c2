"""How the pool owner and its clients talk: one JSON object per message, file descriptors beside.

A message is four bytes of length (big-endian) and that many bytes of JSON. Descriptors ride on the
message's first byte as SCM_RIGHTS, at most one each way.
"""

import json
import socket
from typing import Any, Final

from mux_core.errors import PeerError

MAX_MESSAGE: Final = 64 * 1024
_HEADER: Final = 4

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(_HEADER, "big") + body


def send(sock: socket.socket, message: Message, fd: int | None = None) -> None:
    """Sends all of a message, `fd` with its first byte; `fd` stays open here."""
    data = encode(message)
    sent = socket.send_fds(sock, [data], [] if fd is None else [fd])
    sock.sendall(data[sent:])


def receive(sock: socket.socket) -> tuple[Message, int | None]:
    """The next message and its descriptor, which is then the caller's. PeerError at the end."""
    header, fd = _first(sock)
    body = _exactly(sock, length_of(header))
    return json.loads(body), fd


def take(received: bytearray) -> Message | None:
    """Removes and answers the first whole message of a stream; None when it is not there yet."""
    if len(received) < _HEADER:
        return None
    end = _HEADER + length_of(received)
    if len(received) < end:
        return None
    body = bytes(received[_HEADER:end])
    del received[:end]
    message = json.loads(body)
    if not isinstance(message, dict):
        raise PeerError(f"pool socket: {body[:40]!r} is not a message")
    return message


def length_of(header: bytes | bytearray) -> int:
    """Length of the body. PeerError when nobody of ours would send that."""
    length = int.from_bytes(header[:_HEADER], "big")
    if length > MAX_MESSAGE:
        raise PeerError(f"pool socket: message of {length} bytes, at most {MAX_MESSAGE}; "
                        "is the peer of another release?")  # fmt: skip
    return length


def _first(sock: socket.socket) -> tuple[bytes, int | None]:
    data, fds, _, _ = socket.recv_fds(sock, _HEADER, 1)
    if not data:
        raise PeerError("pool owner: closed the connection; it ended, or never accepted us")
    rest = _exactly(sock, _HEADER - len(data))
    return data + rest, fds[0] if fds else None


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise PeerError("pool owner: the connection ended in the middle of a message")
        data += part
    return bytes(data)
