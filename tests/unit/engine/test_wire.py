"""What is sent arrives as what it was, over a real socket, whichever end dies."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mux_core.engine import (
    Finish,
    Grant,
    HostStats,
    KVGeometry,
    KVHandoff,
    Output,
    Phase,
    Sampling,
    StepResult,
    TokenLogprob,
)
from mux_core.errors import MuxError, UnsupportedModel
from mux_runtime import wire
from mux_runtime.engines.host import (
    BadGrant,
    EngineDescription,
    EngineFault,
    Hello,
    RequestRefused,
)
from mux_runtime.engines.serving import FAULT, OK, REFUSED, serve

GEOMETRY = KVGeometry(layers=2, kv_heads=2, head_dim=32, dtype="float32", block_tokens=16,
                      run_units=4)  # fmt: skip
HANDOFF = KVHandoff(geometry=GEOMETRY, rows=((4, 8), (12, 16)), num_tokens=17, shared_rows=1)
GRANT = Grant(step=3, phases=frozenset(Phase), token_budget=64, max_seqs=4, lease=((1, 5), (9, 13)))
RESULT = StepResult(
    step=3,
    outputs=(
        Output(rid="a", tokens=(7,), logprobs=(
            TokenLogprob(token=7, logprob=-0.5, top=((7, -0.5), (9, -1.25))),)),
        Output(rid="b", tokens=(8,), finish=Finish.HANDOFF),
    ),
    handoffs={"b": HANDOFF}, prefill_tokens=5, decode_tokens=1, used=1, freed=((9, 13),),
    starved=True, more=True, need_rows=2, elapsed_ms=1.5,
)  # fmt: skip
DESCRIPTION = EngineDescription(geometry=GEOMETRY, weight_bytes=99, max_model_len=128, vocab=40,
                                eos_token_ids=(2, 3))  # fmt: skip
SAMPLING = Sampling(max_tokens=5, seed=9, stop_token_ids=(3, 4), logprobs=2)


class Recorder:
    """An engine that remembers what it was asked and answers with fixed values."""

    geometry = GEOMETRY

    def __init__(self, trouble: Exception | None = None) -> None:
        self.seen: list[object] = []
        self.trouble = trouble

    def describe(self) -> EngineDescription:
        return DESCRIPTION

    def open(self, *_: object) -> "Recorder":
        return self

    def add(self, *what: object, **more: object) -> None:
        self.seen.append((*what, more))
        if self.trouble:
            raise self.trouble

    def step(self, grant: Grant) -> StepResult:
        self.seen.append(grant)
        return RESULT

    def abort(self, rid: str) -> KVHandoff | None:
        return HANDOFF if rid == "a" else None

    def stats(self) -> HostStats:
        return HostStats(waiting=1, running=2, owned_rows=3, peak_bytes=4)

    def close(self) -> None:
        self.seen.append("closed")


HELLO = Hello(host_id="m-decode", epoch=4, pid=77, phase=Phase.DECODE)
Connect = Callable[[Recorder], "asyncio.Future[tuple[wire.HostLink, asyncio.Future[int]]]"]


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Connect]:
    links: asyncio.Queue[wire.HostLink] = asyncio.Queue()
    kept: list[wire.HostLink] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append(await wire.HostLink.accept(reader, writer))
        await links.put(kept[-1])

    server = await asyncio.start_unix_server(accept, tmp_path / "s")

    async def start(engine: Recorder) -> tuple[wire.HostLink, asyncio.Future[int]]:
        ended = asyncio.ensure_future(
            asyncio.to_thread(serve, str(tmp_path / "s"), HELLO, engine)  # type: ignore[arg-type]
        )
        link = await links.get()
        return link, ended

    yield start  # type: ignore[misc]
    server.close()
    for link in kept:
        link.disconnect()
        await link.wait_disconnected()


async def test_every_call_carries_its_values(connect: Connect) -> None:
    engine = Recorder()
    link, ended = await connect(engine)
    assert link.hello == HELLO
    assert await link.describe() == DESCRIPTION
    assert await link.open() == DESCRIPTION
    await link.add("a", (1, 2), SAMPLING, prompt_len=1, kv=HANDOFF, detach=True)
    await link.add("b", (1,), SAMPLING, prompt_len=1)
    assert await link.step(GRANT) == RESULT
    assert await link.abort("a") == HANDOFF
    assert await link.abort("b") is None
    assert await link.stats() == HostStats(waiting=1, running=2, owned_rows=3, peak_bytes=4)
    await link.close()
    assert await ended == OK
    assert engine.seen == [
        ("a", [1, 2], SAMPLING, {"prompt_len": 1, "kv": HANDOFF, "detach": True}),
        ("b", [1], SAMPLING, {"prompt_len": 1, "kv": None, "detach": False}),
        GRANT,
        "closed",
    ]


@pytest.mark.parametrize("phases", [(), (Phase.PREFILL,), (Phase.DECODE,), tuple(Phase)])
def test_each_set_of_phases_survives(phases: tuple[Phase, ...]) -> None:
    grant = Grant(step=1, phases=frozenset(phases), token_budget=1, max_seqs=1)
    assert wire.decode_grant(wire.encode_grant(grant)["grant"]) == grant


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (RequestRefused("no"), None),
        (BadGrant("no"), None),
        (UnsupportedModel("no"), REFUSED),
        (EngineFault("no"), FAULT),
    ],
)
async def test_errors_arrive_as_what_they_were(
    connect: Connect, trouble: MuxError, code: int | None
) -> None:
    link, ended = await connect(Recorder(trouble))
    await link.open()
    with pytest.raises(type(trouble), match="no"):
        await link.add("a", (1,), SAMPLING, prompt_len=1)
    if code is None:
        assert await link.step(GRANT) == RESULT
        link.disconnect()
    assert await ended == (code or OK)


async def test_a_bug_in_an_engine_is_a_fault_and_ends_it(connect: Connect) -> None:
    link, ended = await connect(Recorder(ValueError("a bug")))
    await link.open()
    with pytest.raises(EngineFault, match="ValueError: a bug"):
        await link.add("a", (1,), SAMPLING, prompt_len=1)
    with pytest.raises(ValueError, match="a bug"):
        await ended


async def test_a_call_before_open_is_a_fault(connect: Connect) -> None:
    link, ended = await connect(Recorder())
    with pytest.raises(EngineFault, match="before open"):
        await link.step(GRANT)
    assert await ended == FAULT


def test_half_a_message_is_a_fault_and_a_clean_end_is_none() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(wire.encode({"call": "stats"})[:-3])
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(EngineFault, match="middle"):
            wire.receive(ours)
        assert wire.receive(ours) is None


def test_an_impossible_length_is_a_fault() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(EngineFault, match="another release"):
            wire.receive(ours)


def test_an_unknown_sampling_field_is_refused() -> None:
    with pytest.raises(RequestRefused, match="beams"):
        wire.decode_sampling({"max_tokens": 1, "stop_token_ids": [], "beams": 3})


async def test_a_stranger_is_turned_away(tmp_path: Path) -> None:
    failed: asyncio.Queue[EngineFault] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await wire.HostLink.accept(reader, writer)
        except EngineFault as error:
            await failed.put(error)
        writer.close()

    async with await asyncio.start_unix_server(accept, tmp_path / "s"):
        _, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(wire.encode({"call": "stats"}))
        assert "not a hello" in str(await failed.get())
        writer.close()
        await writer.wait_closed()
