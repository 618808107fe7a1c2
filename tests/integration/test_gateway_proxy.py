"""The gateway over real sockets, before real fronts."""

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from front_builders import ScriptedGenerator, echo, served, write_tokenizer
from gateway_builders import (
    HOST,
    client_of,
    endpoint,
    eventually,
    running_front,
    running_gateway,
    table,
    until,
)
from mux_core.engine import Output
from mux_core.errors import PeerError
from mux_core.routes import Endpoint, Route
from mux_runtime.gateway.app import Gateway
from mux_runtime.generation import GenerationRequest

M = {"mux_namespace": "ns", "pool": "p", "model": "alpha-llm", "model_name": "alpha"}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("chatty"))


@pytest.fixture
def generator(checkpoint: Path) -> ScriptedGenerator:
    return ScriptedGenerator([served("alpha", checkpoint)])


async def post(port: int, **fields: Any) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of one completion."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{HOST}:{port}/v1/completions",
                     json={"model": "alpha", "prompt": "the fox", **fields}) as answer,
    ):  # fmt: skip
        return answer.status, await answer.json(), dict(answer.headers)


def value(gateway: Gateway, name: str, **labels: str) -> float | None:
    return gateway.metrics.registry.get_sample_value(name, {**M, **labels})


@contextlib.asynccontextmanager
async def scripted_server(*answers: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that reads each request, writes the next answer and hangs up; the last repeats."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(answers[min(len(seen), len(answers)) - 1])
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


async def arrived(units: list[ScriptedGenerator], count: int) -> bool:
    return sum(len(unit.requests) for unit in units) == count


async def rejected(gateway: Gateway, count: int) -> bool:
    return gateway.metrics.counters["alpha-llm"].rejected == count


async def empty(gateway: Gateway) -> bool:
    return value(gateway, "muxserve_gateway_inflight_requests") == 0


EVENT_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def test_an_answer_passes_through(generator: ScriptedGenerator) -> None:
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front))) as gateway,
        client_of(gateway.http_port) as client,
    ):
        answer = await client.completions.create(model="alpha", prompt="the fox", max_tokens=50)
        stream = await client.completions.create(
            model="alpha", prompt="the fox", max_tokens=50, stream=True
        )
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
        chat = await client.chat.completions.create(
            model="alpha", messages=[{"role": "user", "content": "hi"}]
        )
        assert answer.choices[0].text == streamed == "the fox"
        assert chat.choices[0].message.content == "<|user|>hi\n<|assistant|>"
        assert [model.id async for model in client.models.list()] == ["alpha"]
        assert (await client.models.retrieve("alpha")).id == "alpha"
        assert value(gateway, "muxserve_gateway_responses_total", code="200") == 3
        assert value(gateway, "muxserve_model_ttft_seconds_count", hop="gateway") == 3
        assert value(gateway, "muxserve_gateway_inflight_requests") == 0
    assert generator.arrivals == {}, "the unit counts only what bypasses the gateway"
    assert gateway.metrics.counters["alpha-llm"].arrivals == 3


async def test_clients_see_exactly_the_unit_s_bytes(generator: ScriptedGenerator) -> None:
    """The unit's report to the gateway is taken out, all else is left as it is."""

    async def raw(port: int) -> tuple[bytes, set[str]]:
        body = {"model": "alpha", "prompt": "the fox", "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://{HOST}:{port}/v1/completions", json=body) as answer,
        ):
            return await answer.read(), set(answer.headers)

    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front))) as gateway,
    ):
        direct, headers = await raw(front.http_port)
        through, headers_through = await raw(gateway.http_port)
        whole = await post(gateway.http_port)
    for old, new in ((b'"id":"', b'"created":'),):
        assert direct.count(old) == through.count(new)
    assert b"muxserve tokens" not in through
    assert len(through) == len(direct)
    assert headers_through == headers
    assert not any(name.lower().startswith("x-muxserve") for name in whole[2])


async def test_tokens_pass_one_by_one(generator: ScriptedGenerator) -> None:
    generator.pace = asyncio.Semaphore(1)
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front))) as gateway,
        client_of(gateway.http_port) as client,
    ):
        stream = await client.completions.create(
            model="alpha", prompt="the quick brown fox", stream=True
        )
        chunks = aiter(stream)
        first = await anext(chunks)  # the unit has made no second token yet
        assert first.choices[0].text
        for _ in range(99):
            generator.pace.release()
        rest = [chunk.choices[0].text async for chunk in chunks]
    assert first.choices[0].text + "".join(rest) == "the quick brown fox"


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        pytest.param({"prompt": [1] * 200}, 400, "context_length_exceeded", id="too long"),
        pytest.param({"n": 3}, 400, "unsupported_value", id="several choices"),
        pytest.param({"temperature": 9}, 400, "invalid_value", id="too hot"),
        pytest.param({"stream": True, "top_p": 7}, 400, "invalid_value", id="in a stream"),
    ],
)
async def test_the_unit_s_errors_pass_unchanged(
    generator: ScriptedGenerator, fields: dict[str, Any], status: int, code: str
) -> None:
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front))) as gateway,
    ):
        through = await post(gateway.http_port, **fields)
        direct = await post(front.http_port, **fields)
    assert through[:2] == direct[:2]
    assert (through[0], through[1]["error"]["code"]) == (status, code)


async def test_the_unit_s_full_queue_passes_with_its_retry_after(
    generator: ScriptedGenerator,
) -> None:
    generator.max_queue = 0
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front))) as gateway,
    ):
        status, answer, headers = await post(gateway.http_port)
        assert gateway.metrics.counters["alpha-llm"].rejected == 0, "the unit counts its own"
    assert (status, answer["error"]["code"]) == (429, "queue_full")
    assert "Retry-After" in headers


DEEP = '{"model": "alpha", "x": ' + "[" * 50_000 + "]" * 50_000 + "}"


@pytest.mark.parametrize(
    "body",
    ["{", "[]", '{"prompt": "x"}', '{"model": 5}', DEEP],
    ids=["cut off", "a list", "no model", "a number", "a deep nest"],
)
async def test_a_body_without_a_model_is_refused(body: str) -> None:
    async with running_gateway(table()) as gateway, aiohttp.ClientSession() as session:
        url = f"http://{HOST}:{gateway.http_port}/v1/chat/completions"
        async with session.post(url, data=body) as answer:
            assert answer.status == 400
            assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}


async def test_an_unknown_model_is_404_and_lists_the_served_ones(
    generator: ScriptedGenerator,
) -> None:
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front))) as gateway,
        client_of(gateway.http_port) as client,
    ):
        with pytest.raises(openai.NotFoundError, match="served models: alpha"):
            await client.completions.create(model="x" * 50, prompt="the")
        assert "xxx" not in str(list(gateway.metrics.registry.collect())), "no label from outside"


async def test_a_request_waits_until_an_endpoint_appears(generator: ScriptedGenerator) -> None:
    async with running_front(generator) as front, running_gateway(table()) as gateway:
        waiting = asyncio.create_task(post(gateway.http_port))
        await until(gateway, held=1)
        assert value(gateway, "muxserve_model_held_requests") == 1
        gateway.book.apply(table(endpoint(front), generation=2))
        assert (await waiting)[0] == 200
        assert value(gateway, "muxserve_model_held_requests") == 0
        assert value(gateway, "muxserve_gateway_hold_seconds_count", outcome="served") == 1


async def test_all_held_requests_are_served_in_the_end(generator: ScriptedGenerator) -> None:
    async with running_front(generator) as front, running_gateway(table()) as gateway:
        waiting = [asyncio.create_task(post(gateway.http_port)) for _ in range(40)]
        await until(gateway, held=40)
        gateway.book.apply(table(endpoint(front), generation=2))
        assert {status for status, _, _ in await asyncio.gather(*waiting)} == {200}


async def test_a_hold_ends_with_503_and_the_reason() -> None:
    async with running_gateway(table(hold_timeout_s=0.05)) as gateway:
        status, answer, headers = await post(gateway.http_port)
        assert (status, answer["error"]["code"]) == (503, "no_ready_unit")
        assert "Starting" in answer["error"]["message"]
        assert headers["X-MuxServe-State"] == "Starting"
        assert "Retry-After" in headers
        assert value(gateway, "muxserve_gateway_rejected_total", reason="hold_expired") == 1
        assert value(gateway, "muxserve_gateway_hold_seconds_count", outcome="expired") == 1


async def test_a_model_deleted_while_its_requests_wait_is_404() -> None:
    async with running_gateway(table()) as gateway:
        waiting = asyncio.create_task(post(gateway.http_port))
        await until(gateway, held=1)
        gateway.book.apply(table(generation=2, routes=()))
        assert (await waiting)[0] == 404


async def test_more_than_may_wait_get_429(generator: ScriptedGenerator) -> None:
    generator.pace = asyncio.Semaphore(0)
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front), max_queued_per_model=2)) as gateway,
    ):
        waiting = [asyncio.create_task(post(gateway.http_port)) for _ in range(2)]
        await generator.until(lambda: len(generator.requests) == 2)
        status, answer, headers = await post(gateway.http_port)
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert "at most 2" in answer["error"]["message"]
        assert "Retry-After" in headers
        for _ in range(99):
            generator.pace.release()
        assert {status for status, _, _ in await asyncio.gather(*waiting)} == {200}
        assert (await post(gateway.http_port))[0] == 200
        counters = gateway.metrics.counters["alpha-llm"]
        assert (counters.arrivals, counters.rejected) == (4, 1)


async def test_a_full_hold_is_429_too() -> None:
    async with running_gateway(table(max_queued_per_model=1)) as gateway:
        waiting = asyncio.create_task(post(gateway.http_port))
        await until(gateway, held=1)
        status, answer, _ = await post(gateway.http_port)
        assert (status, answer["error"]["code"]) == (429, "hold_full")
        waiting.cancel()
        await until(gateway, held=0)
        assert value(gateway, "muxserve_gateway_hold_seconds_count", outcome="cancelled") == 1
        assert gateway.metrics.counters["alpha-llm"].cancelled == 1


async def test_every_arrival_counts_whatever_becomes_of_it(generator: ScriptedGenerator) -> None:
    """Twice the capacity is offered; the operator must see the offered load."""
    generator.pace = asyncio.Semaphore(0)
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front), max_queued_per_model=20)) as gateway,
    ):
        offered = [asyncio.create_task(post(gateway.http_port)) for _ in range(40)]
        await generator.until(lambda: len(generator.requests) == 20)
        await eventually(lambda: rejected(gateway, 20))
        for _ in range(999):
            generator.pace.release()
        statuses = sorted([status for status, _, _ in await asyncio.gather(*offered)])
        assert statuses == [200] * 20 + [429] * 20
        counted = gateway.control.status().models["alpha-llm"]
        assert (counted.arrivals, counted.rejected) == (40, 20)
        assert value(gateway, "muxserve_model_requests_total", hop="gateway") == 40


async def test_the_least_loaded_endpoint_serves_next(checkpoint: Path) -> None:
    units = [
        ScriptedGenerator([served("alpha", checkpoint)], pace=asyncio.Semaphore(0))
        for _ in range(2)
    ]
    async with (
        running_front(units[0]) as a,
        running_front(units[1]) as b,
        running_gateway(table(endpoint(a, "a"), endpoint(b, "b", weight=2.0))) as gateway,
    ):
        waiting = []
        for sent in range(1, 7):
            waiting.append(asyncio.create_task(post(gateway.http_port)))
            await eventually(functools.partial(arrived, units, sent))
            if sent == 1:
                assert len(units[1].requests) == 1, "the larger weight first"
        assert [len(unit.requests) for unit in units] == [2, 4], "shared by weight"
        for unit in units:
            assert unit.pace is not None
            for _ in range(99):
                unit.pace.release()
        await asyncio.gather(*waiting)


async def test_an_endpoint_that_cannot_be_reached_is_passed_over(
    generator: ScriptedGenerator, unused_tcp_port: int
) -> None:
    dead = endpoint(unused_tcp_port, "dead", weight=9.0)
    async with (
        running_front(generator) as front,
        running_gateway(table(dead, endpoint(front, "live"))) as gateway,
    ):
        assert {(await post(gateway.http_port))[0] for _ in range(3)} == {200}


async def test_requests_wait_while_their_only_unit_restarts(
    generator: ScriptedGenerator, unused_tcp_port: int
) -> None:
    async with running_gateway(table(endpoint(unused_tcp_port))) as gateway:
        async with running_front(generator, internal_port=unused_tcp_port):
            assert (await post(gateway.http_port))[0] == 200
        waiting = [asyncio.create_task(post(gateway.http_port)) for _ in range(3)]
        await until(gateway, held=3)
        async with running_front(generator, internal_port=unused_tcp_port):
            assert {status for status, _, _ in await asyncio.gather(*waiting)} == {200}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_lost_before_its_first_byte_is_sent_once_more(
    generator: ScriptedGenerator, stream: bool
) -> None:
    async with scripted_server(b"") as (port, seen), running_front(generator) as front:
        broken = endpoint(port, "broken", weight=9.0)
        async with (
            running_gateway(table(broken, endpoint(front, "good"))) as gateway,
            client_of(gateway.http_port) as client,
        ):
            if stream:
                events = await client.completions.create(model="alpha", prompt="the", stream=True)
                text = "".join([event.choices[0].text async for event in events])
            else:
                answer = await client.completions.create(model="alpha", prompt="the")
                text = answer.choices[0].text
    assert text == "the"
    assert len(seen) == 1


async def test_a_request_that_the_unit_itself_lost_is_sent_once_more(
    generator: ScriptedGenerator,
) -> None:
    lost = PeerError("engine host of alpha: exited with signal 9", retry_after_s=3.0)
    answers = [[lost], echo, [lost], [lost]]

    def script(request: GenerationRequest) -> Sequence[Output | Exception]:
        step = answers.pop(0)
        return step(request) if callable(step) else step

    generator.script = script
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front))) as gateway,
    ):
        assert (await post(gateway.http_port))[0] == 200
        status, answer, headers = await post(gateway.http_port)
    assert (status, answer["error"]["code"]) == (503, "engine_lost"), "its own words, unchanged"
    assert "signal 9" in answer["error"]["message"]
    assert headers["Retry-After"] == "3"
    assert not answers


async def test_a_request_is_sent_twice_at_most() -> None:
    async with (
        scripted_server(b"") as (port, seen),
        running_gateway(table(endpoint(port))) as gateway,
    ):
        status, answer, headers = await post(gateway.http_port)
    assert (status, answer["error"]["code"]) == (503, "unit_lost")
    assert "Retry-After" in headers
    assert len(seen) == 2


async def test_half_a_whole_answer_is_retried_because_no_byte_was_passed_on(
    generator: ScriptedGenerator,
) -> None:
    half = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"id"'
    async with scripted_server(half) as (port, _), running_front(generator) as front:
        broken = endpoint(port, "broken", weight=9.0)
        async with running_gateway(table(broken, endpoint(front, "good"))) as gateway:
            status, answer, _ = await post(gateway.http_port)
    assert (status, answer["choices"][0]["text"]) == (200, "the fox")


async def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    whole, half = b'data: {"choices": []}\n\n', b'data: {"choi'
    async with (
        scripted_server(EVENT_STREAM + chunk(whole + half)) as (port, seen),
        running_gateway(table(endpoint(port))) as gateway,
        aiohttp.ClientSession() as session,
    ):
        body = {"model": "alpha", "prompt": "x", "stream": True}
        url = f"http://{HOST}:{gateway.http_port}/v1/completions"
        async with session.post(url, json=body) as answer:
            raw = await answer.read()
        assert value(gateway, "muxserve_gateway_streams_cut_total", reason="unit_lost") == 1
    first, last, nothing = raw.split(b"\n\n")
    assert (first, nothing) == (whole.strip(), b"")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "stream_cut"
    assert len(seen) == 1, "a stream that has begun is never sent again"


async def test_a_unit_that_does_not_have_the_model_is_asked_again_later(
    generator: ScriptedGenerator, checkpoint: Path
) -> None:
    mine = generator.served.pop()
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front))) as gateway,
    ):
        waiting = asyncio.create_task(post(gateway.http_port))
        await until(gateway, held=1)
        generator.served.append(mine)
        await front.sync_models()
        assert (await waiting)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_the_unit(
    generator: ScriptedGenerator, stream: bool
) -> None:
    generator.pace = asyncio.Semaphore(2)
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front))) as gateway,
        aiohttp.ClientSession() as session,
    ):
        body = {"model": "alpha", "prompt": "the quick brown fox", "stream": stream}
        request = session.post(f"http://{HOST}:{gateway.http_port}/v1/completions", json=body)
        if stream:
            async with request as answer:
                await answer.content.readany()
                answer.close()
        else:
            task = asyncio.create_task(request.__aenter__())
            await generator.until(lambda: len(generator.running) == 1)
            task.cancel()
        await generator.until(lambda: len(generator.aborted) == 1)
        await eventually(lambda: empty(gateway))
        assert gateway.metrics.counters["alpha-llm"].cancelled == 1


async def test_only_models_with_an_endpoint_are_listed() -> None:
    routes = (
        Route(model="a", served_name="a", endpoints=(Endpoint(unit="u", host=HOST, port=1),)),
        Route(model="b", served_name="b", reason="Starting"),
    )
    async with (
        running_gateway(table(routes=routes)) as gateway,
        client_of(gateway.http_port) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["a"]
        with pytest.raises(openai.NotFoundError, match="served models: a"):
            await client.models.retrieve("b")


async def test_slo_results_are_counted_at_the_first_hop(generator: ScriptedGenerator) -> None:
    async with running_front(generator) as front, running_gateway() as gateway:
        route = table(endpoint(front)).routes[0]
        strict = Route(model=route.model, served_name="alpha", endpoints=route.endpoints,
                       slo_ttft_s=1e-9)  # fmt: skip
        loose = Route(model=route.model, served_name="alpha", endpoints=route.endpoints,
                      slo_ttft_s=60.0, slo_tpot_s=60.0)  # fmt: skip
        for generation, found in enumerate((strict, loose)):
            gateway.book.apply(table(generation=generation, routes=(found,)))
            for stream in (False, True):
                async with (
                    aiohttp.ClientSession() as session,
                    session.post(f"http://{HOST}:{gateway.http_port}/v1/completions",
                                 json={"model": "alpha", "prompt": "the", "stream": stream}) as a,
                ):  # fmt: skip
                    await a.read()
        name = "muxserve_model_slo_requests_total"
        assert value(gateway, name, hop="gateway", result="ttft_late") == 2
        assert value(gateway, name, hop="gateway", result="good") == 2
        told = gateway.control.status().models["alpha-llm"]
        assert (told.slo_judged, told.slo_met) == (4, 2)
