import os
import socket
from collections.abc import Iterator

import pytest

from mux_core.errors import PeerError
from mux_runtime.kvpool import wire

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_a_message_arrives_with_its_descriptor(pair: Pair) -> None:
    reading, writing = os.pipe()
    wire.send(pair[0], {"op": "kv", "bytes": 7}, writing)
    message, received = wire.receive(pair[1])
    assert message == {"op": "kv", "bytes": 7}
    assert received is not None
    os.write(received, b"x")
    assert os.read(reading, 1) == b"x"
    for fd in (reading, writing, received):
        os.close(fd)


def test_messages_in_a_row_keep_their_borders(pair: Pair) -> None:
    for number in range(3):
        wire.send(pair[0], {"n": "x" * 300 * number})
    assert [len(wire.receive(pair[1])[0]["n"]) for _ in range(3)] == [0, 300, 600]


def test_an_end_in_mid_message_is_a_peer_error(pair: Pair) -> None:
    pair[0].sendall(wire.encode({"op": "kv"})[:-1])
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(PeerError, match="in the middle of a message"):
        wire.receive(pair[1])


def test_an_end_between_messages_is_a_peer_error(pair: Pair) -> None:
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(PeerError, match="closed the connection"):
        wire.receive(pair[1])


def test_a_message_is_taken_once_it_is_whole() -> None:
    stream = bytearray()
    data = wire.encode({"op": "kv"}) + wire.encode({"op": "state"})
    taken = []
    for byte in data:
        stream.append(byte)
        if (message := wire.take(stream)) is not None:
            taken.append(message["op"])
    assert taken == ["kv", "state"]
    assert not stream


def test_a_length_of_no_release_of_ours_is_refused() -> None:
    with pytest.raises(PeerError, match=f"message of {wire.MAX_MESSAGE + 1} bytes, at most"):
        wire.length_of((wire.MAX_MESSAGE + 1).to_bytes(4, "big"))
