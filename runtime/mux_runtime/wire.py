"""How the unit scheduler and an engine host talk: length-prefixed JSON over a Unix socket.

A message is four bytes of length (big-endian) and that many bytes of JSON. The host speaks first
(hello), then answers one call at a time. Blocking on the host's side, asyncio on the scheduler's.
Standard library only, so that a host can speak it. Records that travel often are arrays: a grant
is `[step, phases, budget, seqs, rows]`.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from mux_core.engine import (
    Finish,
    Grant,
    HostStats,
    KVGeometry,
    KVHandoff,
    Output,
    Phase,
    Row,
    Sampling,
    StepResult,
    TokenLogprob,
)
from mux_core.errors import InvariantError, MuxError, PeerError, SpecError, UnsupportedModel
from mux_runtime.engines.host import (
    AttachFailed,
    BadGrant,
    EngineDescription,
    EngineFault,
    GeometryMismatch,
    Hello,
    RequestRefused,
    UnsupportedVersion,
)

MAX_MESSAGE: Final = 64 * 1024 * 1024
_HEADER: Final = 4

Message = dict[str, Any]

_ERRORS: Final[dict[str, type[MuxError]]] = {
    kind.__name__: kind
    for kind in (
        UnsupportedModel, UnsupportedVersion, GeometryMismatch, RequestRefused, AttachFailed,
        BadGrant, EngineFault, SpecError, PeerError, InvariantError,
    )
}  # fmt: skip
_PHASES: Final[dict[str, frozenset[Phase]]] = {
    "": frozenset(),
    "p": frozenset({Phase.PREFILL}),
    "d": frozenset({Phase.DECODE}),
    "pd": frozenset(Phase),
}


def encode(message: Message) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(_HEADER, "big") + body


def _length(header: bytes) -> int:
    length = int.from_bytes(header, "big")
    if length > MAX_MESSAGE:
        raise EngineFault(f"engine socket: message of {length} bytes, at most {MAX_MESSAGE}; "
                          "is the peer of another release?")  # fmt: skip
    return length


def send(sock: socket.socket, message: Message) -> None:
    sock.sendall(encode(message))


def receive(sock: socket.socket) -> Message | None:
    """The next message; None when the peer closed between two messages."""
    header = _exactly(sock, _HEADER)
    if header is None:
        return None
    body = _exactly(sock, _length(header))
    if body is None:
        raise EngineFault("engine socket: the connection ended in the middle of a message")
    message: Message = json.loads(body)
    return message


def _exactly(sock: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(min(count - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


class HostLink:
    """The scheduler's end of one host's socket. One call at a time.

    A host that ends, or answers nonsense, raises EngineFault from the call under way. Errors the
    host raised on purpose arrive as what they were.
    """

    def __init__(
        self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.hello = hello
        self._reader = reader
        self._writer = writer

    @classmethod
    async def accept(cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> "HostLink":
        """Waits for the hello of a connection just made."""
        message = await _read(reader, "a host that said no hello")
        return cls(decode_hello(message), reader, writer)

    async def describe(self) -> EngineDescription:
        """What it will need; answered within milliseconds of hello, before `open`."""
        return decode_description(await self._call({"call": "describe"}))

    async def open(self) -> EngineDescription:
        """Maps memory and loads weights; takes seconds. The host knows its own arguments."""
        return decode_description(await self._call({"call": "open"}))

    async def add(
        self, rid: str, token_ids: Sequence[int], sampling: Sampling, *, prompt_len: int,
        kv: KVHandoff | None = None, detach: bool = False,
    ) -> None:  # fmt: skip
        await self._call(
            encode_add(rid, token_ids, sampling, prompt_len=prompt_len, kv=kv, detach=detach)
        )

    async def step(self, grant: Grant) -> StepResult:
        return decode_result((await self._call(encode_grant(grant)))["result"])

    async def abort(self, rid: str) -> KVHandoff | None:
        reply = await self._call({"call": "abort", "rid": rid})
        return None if reply["kv"] is None else decode_handoff(reply["kv"])

    async def stats(self) -> HostStats:
        return HostStats(**(await self._call({"call": "stats"}))["stats"])

    async def close(self) -> None:
        """Asks the host to end and closes the socket; waits for the host's answer only."""
        try:
            await self._call({"call": "close"})
        finally:
            self.disconnect()

    def disconnect(self) -> None:
        """Closes the socket; the host exits as soon as its call under way ends."""
        self._writer.close()

    async def wait_disconnected(self) -> None:
        """Waits until the socket closed by `disconnect` is released."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _call(self, request: Message) -> Message:
        subject = f"engine host {self.hello.host_id} epoch {self.hello.epoch}"
        try:
            self._writer.write(encode(request))
            await self._writer.drain()
        except OSError as error:
            raise EngineFault(f"{subject}: {error}; it ended") from error
        reply = await _read(self._reader, subject)
        if "error" in reply:
            raise decode_error(reply)
        return reply


async def _read(reader: asyncio.StreamReader, subject: str) -> Message:
    try:
        length = _length(await reader.readexactly(_HEADER))
        message: Message = json.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError) as error:
        raise EngineFault(f"{subject}: its connection ended; it died or was stopped") from error
    except ValueError as error:
        raise EngineFault(f"{subject}: sent what is not JSON ({error})") from error
    return message


def encode_hello(hello: Hello) -> Message:
    return {"hello": asdict(hello)}


def decode_hello(message: Message) -> Hello:
    try:
        hello = message["hello"]
        return Hello(**{**hello, "phase": Phase(hello["phase"])})
    except (KeyError, TypeError, ValueError) as error:
        raise EngineFault(f"engine socket: the first message is not a hello ({error!r})") from error


def encode_description(description: EngineDescription) -> Message:
    return {"engine": asdict(description)}


def decode_description(message: Message) -> EngineDescription:
    engine = message["engine"]
    return EngineDescription(**{
        **engine,
        "geometry": KVGeometry(**engine["geometry"]),
        "eos_token_ids": tuple(engine["eos_token_ids"]),
    })  # fmt: skip


def encode_error(error: MuxError) -> Message:
    """The nearest class of the error tree that the other side knows."""
    known = next((c.__name__ for c in type(error).__mro__ if c.__name__ in _ERRORS), "EngineFault")
    return {"error": known, "message": str(error)}


def decode_error(message: Message) -> MuxError:
    kind = _ERRORS.get(message["error"], EngineFault)
    return kind(message["message"])


def encode_rows(rows: Sequence[Row]) -> list[Row]:
    """JSON writes tuples as arrays; no copy is made."""
    return list(rows)


def decode_rows(rows: list[list[int]]) -> tuple[Row, ...]:
    return tuple(map(tuple, rows))


def encode_handoff(handoff: KVHandoff) -> list[Any]:
    g = handoff.geometry
    shape = [g.layers, g.kv_heads, g.head_dim, g.dtype, g.block_tokens, g.run_units]
    return [shape, encode_rows(handoff.rows), handoff.num_tokens, handoff.shared_rows]


def decode_handoff(data: list[Any]) -> KVHandoff:
    (layers, kv_heads, head_dim, dtype, block_tokens, run_units), rows, tokens, shared = data
    geometry = KVGeometry(layers=layers, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype,
                          block_tokens=block_tokens, run_units=run_units)  # fmt: skip
    return KVHandoff(
        geometry=geometry, rows=decode_rows(rows), num_tokens=tokens, shared_rows=shared
    )


def encode_add(
    rid: str, token_ids: Sequence[int], sampling: Sampling, *, prompt_len: int,
    kv: KVHandoff | None, detach: bool,
) -> Message:  # fmt: skip
    return {
        "call": "add",
        "rid": rid,
        "tokens": list(token_ids),
        "sampling": asdict(sampling),
        "prompt_len": prompt_len,
        "kv": None if kv is None else encode_handoff(kv),
        "detach": detach,
    }


def decode_sampling(data: Message) -> Sampling:
    """Raises RequestRefused for a field this host does not know."""
    try:
        return Sampling(**{**data, "stop_token_ids": tuple(data["stop_token_ids"])})
    except TypeError as error:
        raise RequestRefused(f"sampling: {error}") from error


def encode_grant(grant: Grant) -> Message:
    phases = "".join(phase.value[0] for phase in Phase if phase in grant.phases)
    lease = encode_rows(grant.lease)
    return {"call": "step",
            "grant": [grant.step, phases, grant.token_budget, grant.max_seqs, lease]}  # fmt: skip


def decode_grant(data: list[Any]) -> Grant:
    step, phases, budget, seqs, lease = data
    return Grant(step=step, phases=_PHASES[phases], token_budget=budget, max_seqs=seqs,
                 lease=decode_rows(lease))  # fmt: skip


def encode_result(result: StepResult) -> Message:
    outputs = [
        [o.rid, o.tokens, o.finish, [[p.token, p.logprob, p.top] for p in o.logprobs]]
        for o in result.outputs
    ]
    handoffs = {rid: encode_handoff(handoff) for rid, handoff in result.handoffs.items()}
    counts = [result.step, result.prefill_tokens, result.decode_tokens, result.used,
              result.starved, result.more, result.need_rows, result.elapsed_ms]  # fmt: skip
    return {"result": [counts, outputs, handoffs, encode_rows(result.freed)]}


def decode_result(data: list[Any]) -> StepResult:
    counts, outputs, handoffs, freed = data
    step, prefill_tokens, decode_tokens, used, starved, more, need_rows, elapsed_ms = counts
    return StepResult(
        step=step, prefill_tokens=prefill_tokens, decode_tokens=decode_tokens, used=used,
        starved=starved, more=more, need_rows=need_rows, elapsed_ms=elapsed_ms,
        outputs=tuple(map(_decode_output, outputs)),
        handoffs={rid: decode_handoff(handoff) for rid, handoff in handoffs.items()},
        freed=decode_rows(freed),
    )  # fmt: skip


def _decode_output(data: list[Any]) -> Output:
    rid, tokens, finish, logprobs = data
    return Output(
        rid=rid, tokens=tuple(tokens), finish=None if finish is None else Finish(finish),
        logprobs=tuple(
            TokenLogprob(token=token, logprob=logprob, top=tuple((t, p) for t, p in top))
            for token, logprob, top in logprobs
        ),
    )  # fmt: skip
