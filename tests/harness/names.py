"""Cluster DNS for pods: A records of Services, and nothing else.

Just enough of RFC 1035 for resolvers to find `web.shop.svc.cluster.local`: one question in, one
answer out, by UDP. Every other name does not exist here.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from typing import cast

DOMAIN = "svc.cluster.local"
PORT = 53

_HEADER = struct.Struct("!6H")
_QUESTION = struct.Struct("!2H")
_ANSWER = struct.Struct("!3HIH")
_IS_ANSWER, _IS_AUTHORITY, _RECURSION_WANTED = 0x8000, 0x0400, 0x0100
_NO_SUCH_NAME = 3
_POINTER_TO_NAME = 0xC000 + _HEADER.size
_TYPE_A, _CLASS_IN, _SECONDS = 1, 1, 1

Resolve = Callable[[str], Sequence[str] | None]


def resolv_conf(server: str, namespace: str) -> str:
    """What a kubelet writes for a pod with the default DNS policy."""
    search = f"{namespace}.{DOMAIN} {DOMAIN} cluster.local"
    return f"nameserver {server}\nsearch {search}\noptions ndots:5\n"


def answer(query: bytes, resolve: Resolve) -> bytes:
    """The reply to one query; `resolve` says None for a name that does not exist."""
    number, flags, *_ = _HEADER.unpack_from(query)
    name, end = _read_name(query)
    kind, _ = _QUESTION.unpack_from(query, end)
    question = query[_HEADER.size : end + _QUESTION.size]
    found = resolve(name.lower())
    records = list(found or ()) if kind == _TYPE_A else []
    code = _NO_SUCH_NAME if found is None else 0
    reply = _IS_ANSWER | _IS_AUTHORITY | (flags & _RECURSION_WANTED) | code
    header = _HEADER.pack(number, reply, 1, len(records), 0, 0)
    return header + question + b"".join(_record(address) for address in records)


def _read_name(query: bytes) -> tuple[str, int]:
    labels, at = [], _HEADER.size
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), at + 1


def _record(address: str) -> bytes:
    head = _ANSWER.pack(_POINTER_TO_NAME, _TYPE_A, _CLASS_IN, _SECONDS, 4)
    return head + socket.inet_aton(address)


class _Server(asyncio.DatagramProtocol):
    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Python 3.11's own transport is one without being a subclass.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None:
            self._transport.sendto(answer(data, self._resolve), addr)


async def serve(address: str, resolve: Resolve) -> None:
    """Begin to answer on the address; lasts as long as the event loop."""
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: _Server(resolve), local_addr=(address, PORT))
