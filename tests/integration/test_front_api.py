"""The front over real sockets, asked by the real OpenAI client."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from front_builders import (
    ScriptedGenerator,
    byte_fallback,
    byte_level,
    outputs,
    served,
    write_tokenizer,
)
from gateway_builders import HOST, client_of
from mux_core.engine import Finish, Output
from mux_core.errors import PeerError
from mux_runtime.front.app import Front
from mux_runtime.generation import RequestRefused

TEXT = "naïve café, 東京 🚀 the quick brown fox"
USER = {"role": "user", "content": "the fox"}


def ids(text: str) -> list[int]:
    return list(byte_level().encode(text).ids)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "alpha": write_tokenizer(folder / "alpha"),
        "mute": write_tokenizer(folder / "mute", template=None),
        "words": write_tokenizer(folder / "words", kind=byte_fallback),
    }


@pytest.fixture
async def generator(checkpoints: dict[str, Path]) -> ScriptedGenerator:
    return ScriptedGenerator([served("alpha", checkpoints["alpha"])])


@pytest.fixture
async def front(generator: ScriptedGenerator) -> AsyncIterator[Front]:
    front = Front(generator, namespace="ns", pool="p", unit="u0", max_body_bytes=4096)
    await front.start(HOST, 0, 0)
    await front.sync_models()
    yield front
    await front.close()


@pytest.fixture
async def client(front: Front) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(front.http_port) as client:
        yield client


async def post(port: int, path: str, body: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, JSON and headers of a raw POST; a string is sent as it is."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{HOST}:{port}{path}",
                     data=body if isinstance(body, str) else json.dumps(body)) as answer,
    ):  # fmt: skip
        return answer.status, await answer.json(), dict(answer.headers)


async def events(port: int, path: str, body: dict[str, Any]) -> list[Any]:
    """The data of all events of a stream; `[DONE]` as text."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{HOST}:{port}{path}", json={**body, "stream": True}) as answer,
    ):
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        raw = (await answer.read()).decode()
    lines = raw.split("\n\n")
    assert lines.pop() == "", "the last event ends like all others"
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["alpha"]
    assert (await client.models.retrieve("alpha")).id == "alpha"
    with pytest.raises(openai.NotFoundError, match="served models: alpha"):
        await client.models.retrieve("beta")


async def test_a_completion_is_the_generator_s_text(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="alpha", prompt=TEXT, max_tokens=99)
    assert answer.choices[0].text == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids(TEXT))
    assert answer.usage.completion_tokens == len(ids(TEXT)) + 1
    assert answer.usage.total_tokens == 2 * len(ids(TEXT)) + 1


async def test_a_prompt_of_token_ids_is_taken_as_it_is(
    client: openai.AsyncOpenAI, generator: ScriptedGenerator
) -> None:
    await client.completions.create(model="alpha", prompt=[7, 8, 9])
    assert generator.requests[0].prompt == (7, 8, 9)
    assert generator.requests[0].model == "alpha-llm"
    assert generator.requests[0].sampling.max_tokens == 16


async def test_the_front_draws_a_seed_when_none_is_given(
    client: openai.AsyncOpenAI, generator: ScriptedGenerator
) -> None:
    for seed in (5, None, None):
        await client.completions.create(model="alpha", prompt="fox", seed=seed)
    given, first, second = (request.sampling.seed for request in generator.requests)
    assert given == 5
    assert first != second


async def test_a_streamed_completion_joins_to_the_whole_one(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="alpha", prompt=TEXT, max_tokens=99, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks if c.choices) == TEXT
    assert not any("\ufffd" in c.choices[0].text for c in chunks if c.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ids(TEXT)) + 1
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_bytes_of_a_chat_stream_are_openai_s(front: Front) -> None:
    found = await events(front.http_port, "/v1/chat/completions",
                         {"model": "alpha", "messages": [USER], "max_tokens": 1,
                          "stream_options": {"include_usage": True}})  # fmt: skip
    assert found.pop() == "[DONE]"
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert {"id", "object", "created", "model", "choices", "usage"} == set(found[0])
    opening, *_, ending, counts = found
    assert opening["choices"][0] == {"index": 0, "delta": {"role": "assistant", "content": ""},
                                     "logprobs": None, "finish_reason": None}  # fmt: skip
    assert ending["choices"][0] == {"index": 0, "delta": {}, "logprobs": None,
                                    "finish_reason": "length"}  # fmt: skip
    assert [chunk["usage"] for chunk in found[:-1]] == [None] * (len(found) - 1)
    assert counts["choices"] == []
    assert counts["usage"]["completion_tokens"] == 1


async def test_without_include_usage_no_chunk_speaks_of_it(front: Front) -> None:
    found = await events(front.http_port, "/v1/completions", {"model": "alpha", "prompt": "fox"})
    assert found[-1] == "[DONE]"
    assert all("usage" not in chunk for chunk in found[:-1])


async def test_a_chat_uses_the_model_s_template(
    client: openai.AsyncOpenAI, generator: ScriptedGenerator
) -> None:
    answer = await client.chat.completions.create(model="alpha", messages=[USER])  # type: ignore[list-item]
    expected = "<|user|>the fox\n<|assistant|>"
    assert byte_level().decode(generator.requests[0].prompt, skip_special_tokens=False) == expected
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].message.role == "assistant"
    assert generator.requests[0].sampling.max_tokens == 128 - len(generator.requests[0].prompt)


async def test_a_template_may_refuse_messages(front: Front) -> None:
    status, answer, _ = await post(
        front.http_port, "/v1/chat/completions",
        {"model": "alpha", "messages": [{"role": "developer", "content": "x"}]})  # fmt: skip
    assert status == 400
    assert "no developer" in answer["error"]["message"]


async def test_without_a_template_completions_work_and_chat_says_what_to_do(
    generator: ScriptedGenerator, front: Front, checkpoints: dict[str, Path]
) -> None:
    generator.served.append(served("mute", checkpoints["mute"]))
    await front.sync_models()
    path = "/v1/chat/completions"
    status, answer, _ = await post(front.http_port, path, {"model": "mute", "messages": [USER]})
    assert (status, answer["error"]["code"]) == (400, "no_chat_template")
    assert "use /v1/completions" in answer["error"]["message"]
    status, answer, _ = await post(front.http_port, "/v1/completions",
                                   {"model": "mute", "prompt": "the fox"})  # fmt: skip
    assert (status, answer["choices"][0]["text"]) == (200, "the fox")


async def test_a_sentencepiece_model_keeps_its_spaces(
    generator: ScriptedGenerator, front: Front, checkpoints: dict[str, Path]
) -> None:
    generator.served.append(served("words", checkpoints["words"]))
    await front.sync_models()
    async with client_of(front.http_port) as client:
        stream = await client.completions.create(
            model="words", prompt="the fox é 東 the dog.", max_tokens=99, stream=True
        )
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == "the fox é 東 the dog."


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_across_tokens_ends_the_request(
    front: Front, generator: ScriptedGenerator, stream: bool
) -> None:
    body = {"model": "alpha", "prompt": "the quick brown fox", "stop": ["k brow"], "max_tokens": 50}
    if stream:
        found = await events(front.http_port, "/v1/completions", body)
        text = "".join(chunk["choices"][0]["text"] for chunk in found[:-1])
        finish = found[-2]["choices"][0]["finish_reason"]
    else:
        _, answer, _ = await post(front.http_port, "/v1/completions", body)
        text, finish = answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]
    assert (text, finish) == ("the quic", "stop")
    await generator.until(lambda: generator.aborted == [generator.requests[0].rid])


async def test_token_ids_come_back_when_asked_for(front: Front) -> None:
    body = {"model": "alpha", "prompt": [7, 8, 9], "return_token_ids": True, "ignore_eos": True}
    _, answer, _ = await post(front.http_port, "/v1/completions", body)
    assert answer["choices"][0]["token_ids"] == [7, 8, 9, 0]
    assert answer["choices"][0]["prompt_token_ids"] == [7, 8, 9]
    chunks = (await events(front.http_port, "/v1/completions", body))[:-1]
    assert [t for chunk in chunks for t in chunk["choices"][0]["token_ids"]] == [7, 8, 9, 0]
    assert chunks[0]["choices"][0]["prompt_token_ids"] == [7, 8, 9]
    assert all("prompt_token_ids" not in chunk["choices"][0] for chunk in chunks[1:])


async def test_token_ids_of_a_chat_stand_where_vllm_has_them(
    front: Front, generator: ScriptedGenerator
) -> None:
    body = {"model": "alpha", "messages": [USER], "return_token_ids": True, "max_tokens": 3}
    _, answer, _ = await post(front.http_port, "/v1/chat/completions", body)
    prompt = list(generator.requests[0].prompt)
    assert answer["prompt_token_ids"] == prompt
    assert answer["choices"][0]["token_ids"] == prompt[:3]
    chunks = (await events(front.http_port, "/v1/chat/completions", body))[:-1]
    assert chunks[0]["prompt_token_ids"] == prompt
    assert all("prompt_token_ids" not in chunk for chunk in chunks[1:])
    assert [t for c in chunks for t in c["choices"][0].get("token_ids", ())] == prompt[:3]


async def test_completion_logprobs_are_parallel_lists(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="alpha", prompt="the fox", logprobs=2,
                                             max_tokens=2)  # fmt: skip
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert "".join(found.tokens) == answer.choices[0].text
    assert found.token_logprobs == [-0.5, -0.5]
    assert found.text_offset == [0, len(found.tokens[0])]
    assert found.top_logprobs is not None
    assert [len(top) for top in found.top_logprobs] == [2, 2]


async def test_streamed_offsets_go_on_where_the_last_chunk_ended(front: Front) -> None:
    body = {"model": "alpha", "prompt": "the fox and the dog", "logprobs": 0}
    chunks = (await events(front.http_port, "/v1/completions", body))[:-1]
    offsets = [o for chunk in chunks for o in chunk["choices"][0]["logprobs"]["text_offset"]]
    tokens = [t for chunk in chunks for t in chunk["choices"][0]["logprobs"]["tokens"]]
    assert offsets == [sum(len(t) for t in tokens[:index]) for index in range(len(tokens))]


@pytest.mark.parametrize(("top", "count"), [(None, 0), (3, 3)])
async def test_chat_logprobs_are_a_list_of_tokens(
    client: openai.AsyncOpenAI, top: int | None, count: int
) -> None:
    answer = await client.chat.completions.create(
        model="alpha", messages=[USER], logprobs=True, top_logprobs=top, max_tokens=2)  # type: ignore[list-item]  # fmt: skip
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert "".join(entry.token for entry in found.content) == answer.choices[0].message.content
    assert [len(entry.top_logprobs) for entry in found.content] == [count, count]
    assert found.content[0].bytes == list(found.content[0].token.encode())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_ends_its_request(
    front: Front, generator: ScriptedGenerator, stream: bool
) -> None:
    generator.pace = asyncio.Semaphore(2)
    body = {"model": "alpha", "prompt": "the quick brown fox", "stream": stream}
    async with aiohttp.ClientSession() as session:
        request = session.post(f"http://{HOST}:{front.http_port}/v1/completions", json=body)
        if stream:
            async with request as answer:
                await answer.content.readany()
        else:
            task = asyncio.create_task(request.__aenter__())
            await generator.until(lambda: len(generator.running) == 1)
            task.cancel()
        await generator.until(lambda: len(generator.aborted) == 1)
    assert not generator.running
    await asyncio.sleep(0)
    value = front.registry.get_sample_value
    assert value("vllm:request_success_total",
                 {"mux_namespace": "ns", "pool": "p", "unit": "u0", "model": "alpha-llm",
                  "model_name": "alpha", "finished_reason": "abort"}) == 1  # fmt: skip


async def test_a_failure_in_the_middle_ends_the_stream_with_an_error_event(
    front: Front, generator: ScriptedGenerator
) -> None:
    generator.script = lambda request: [
        Output(rid=request.rid, tokens=tuple(ids("the"))),
        PeerError("engine host of alpha: exited with signal 9"),
    ]
    found = await events(front.http_port, "/v1/completions", {"model": "alpha", "prompt": "x"})
    assert found[0]["choices"][0]["text"] == "the"
    assert found[-1]["error"]["code"] == "engine_lost"
    assert "[DONE]" not in found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        pytest.param(RequestRefused("no"), 400, "request_refused", id="refused"),
        pytest.param(PeerError("lost", retry_after_s=3.0), 503, "engine_lost", id="lost"),
        pytest.param(RuntimeError("bug"), 500, "internal_error", id="our own bug"),
    ],
)
async def test_a_failure_before_the_first_token_is_an_http_status(
    front: Front, generator: ScriptedGenerator, failure: Exception, status: int, code: str,
    stream: bool,
) -> None:  # fmt: skip
    generator.script = lambda _: [failure]
    body = {"model": "alpha", "prompt": "x", "stream": stream}
    found, answer, headers = await post(front.http_port, "/v1/completions", body)
    assert (found, answer["error"]["code"]) == (status, code)
    assert headers.get("Retry-After") == ("3" if status == 503 else None)
    assert "bug" not in answer["error"]["message"]


async def test_a_full_queue_is_429(front: Front, generator: ScriptedGenerator) -> None:
    generator.max_queue = 0
    status, answer, headers = await post(front.http_port, "/v1/completions",
                                         {"model": "alpha", "prompt": "x"})  # fmt: skip
    assert (status, answer["error"]["code"]) == (429, "queue_full")
    assert int(headers["Retry-After"]) >= 1
    assert generator.arrivals["alpha-llm"] == 1, "an arrival counts before it is rejected"


LONG = list(range(100, 228))


@pytest.mark.parametrize(
    ("body", "status", "code", "named"),
    [
        pytest.param("{", 400, "invalid_json", ("not JSON",), id="not JSON"),
        pytest.param({"prompt": "x"}, 400, "missing_field", ("model",), id="no model"),
        pytest.param({"model": "beta", "prompt": "x"}, 404, "model_not_found",
                     ("'beta'", "alpha"), id="unknown model"),
        pytest.param({"model": "alpha", "prompt": LONG}, 400, "context_length_exceeded",
                     ("128 tokens", "127", "max_model_len"), id="prompt too long"),
        pytest.param({"model": "alpha", "prompt": [1] * 100, "max_tokens": 50}, 400,
                     "context_length_exceeded",
                     ("100 tokens", "max_tokens 50", "128", "lower max_tokens to 28"),
                     id="prompt and output too long"),
        pytest.param({"model": "alpha", "prompt": "x", "n": 2}, 400, "unsupported_value",
                     ("n: 2", "at most 1"), id="two choices"),
        pytest.param({"model": "alpha", "prompt": "x", "temperature": 9}, 400, "invalid_value",
                     ("temperature: 9", "0 to 2"), id="too hot"),
        pytest.param({"model": "alpha", "prompt": ""}, 400, "invalid_value", ("0 tokens",),
                     id="empty prompt"),
        pytest.param({"model": "alpha", "prompt": [5000]}, 400, "invalid_value",
                     ("token id 5000", "ids 0 to"), id="token the model lacks"),
        pytest.param({"model": "alpha", "prompt": "x", "stop_token_ids": [5000]}, 400,
                     "invalid_value", ("stop_token_ids",), id="stop token the model lacks"),
        pytest.param({"model": "alpha", "prompt": "x" * 5000}, 413, "body_too_large",
                     ("4096 bytes",), id="body too large"),
    ],
)  # fmt: skip
async def test_bad_input_gets_one_clear_message(
    front: Front, body: Any, status: int, code: str, named: tuple[str, ...]
) -> None:
    found, answer, _ = await post(front.http_port, "/v1/completions", body)
    assert (found, answer["error"]["code"]) == (status, code)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    for part in named:
        assert part in answer["error"]["message"]
    found, _, _ = await post(front.http_port, "/v1/completions", {"model": "alpha", "prompt": "x"})
    assert found == 200, "everything else goes on serving"


async def test_what_the_kv_limit_can_never_hold_is_refused(
    front: Front, generator: ScriptedGenerator, checkpoints: dict[str, Path]
) -> None:
    generator.served = [served("alpha", checkpoints["alpha"], kv_limit_tokens=20)]
    body = {"model": "alpha", "prompt": [1] * 10, "max_tokens": 11}
    status, answer, _ = await post(front.http_port, "/v1/completions", body)
    assert (status, answer["error"]["code"]) == (400, "kv_limit_exceeded")
    assert "20" in answer["error"]["message"]


async def test_unknown_urls_and_methods_answer_in_the_same_shape(front: Front) -> None:
    status, answer, _ = await post(front.http_port, "/v1/embeddings", {})
    assert (status, answer["error"]["code"]) == (404, "unknown_url")
    status, answer, _ = await post(front.http_port, "/v1/models", {})
    assert status == 405
    assert answer["error"]["type"] == "invalid_request_error"


async def test_the_internal_port_serves_all_and_counts_nothing(
    front: Front, generator: ScriptedGenerator
) -> None:
    for port in (front.http_port, front.internal_port):
        await post(port, "/v1/completions", {"model": "alpha", "prompt": "x"})
    assert generator.arrivals == {"alpha-llm": 1}


async def test_a_model_s_own_port_serves_it_alone(
    front: Front, generator: ScriptedGenerator, checkpoints: dict[str, Path],
    unused_tcp_port_factory: Any,
) -> None:  # fmt: skip
    port = unused_tcp_port_factory()
    generator.served.append(served("own", checkpoints["alpha"], port=port))
    await front.sync_models()
    body = {"prompt": "the fox"}
    assert (await post(port, "/v1/completions", {**body, "model": "own"}))[0] == 200
    status, answer, _ = await post(port, "/v1/completions", {**body, "model": "alpha"})
    assert (status, answer["error"]["message"]) == (
        404, "model 'alpha': not served here; served models: own")  # fmt: skip
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{HOST}:{port}/metrics") as metrics:
            text = await metrics.text()
        async with session.get(f"http://{HOST}:{port}/v1/models") as listed:
            assert [card["id"] for card in (await listed.json())["data"]] == ["own"]
    assert 'vllm:request_success_total{finished_reason="stop",model_name="own"} 1.0' in text
    assert generator.arrivals["own-llm"] == 1, "it bypassed the gateway"


async def test_a_model_may_change_its_name_and_port_while_it_serves(
    front: Front, generator: ScriptedGenerator, checkpoints: dict[str, Path],
    unused_tcp_port_factory: Any,
) -> None:  # fmt: skip
    old, new = unused_tcp_port_factory(), unused_tcp_port_factory()
    for name, port in (("old", old), ("new", new)):
        generator.served = [served(name, checkpoints["alpha"], model="llm", port=port)]
        await front.sync_models()
        assert (await post(port, "/v1/completions", {"model": name, "prompt": "x"}))[0] == 200
    for port in (new, front.http_port):
        assert (await post(port, "/v1/completions", {"model": "old", "prompt": "x"}))[0] == 404
    with pytest.raises(aiohttp.ClientConnectorError):
        await post(old, "/v1/completions", {"model": "new", "prompt": "x"})


async def test_a_model_that_left_answers_503_while_it_is_a_member_and_404_after(
    front: Front, generator: ScriptedGenerator, checkpoints: dict[str, Path],
    unused_tcp_port_factory: Any,
) -> None:  # fmt: skip
    port = unused_tcp_port_factory()
    generator.served.append(served("own", checkpoints["alpha"], port=port))
    await front.sync_models()
    body = {"model": "own", "prompt": "x"}
    generator.served.pop()
    await front.sync_models(members=("own-llm",))
    for found in (port, front.http_port):
        status, answer, headers = await post(found, "/v1/completions", body)
        assert (status, answer["error"]["code"]) == (503, "model_not_ready")
        assert "Retry-After" in headers
    await front.sync_models()
    assert (await post(front.http_port, "/v1/completions", body))[0] == 404
    with pytest.raises(aiohttp.ClientConnectorError):
        await post(port, "/v1/completions", body)


async def test_a_request_refused_for_want_of_an_engine_misses_its_slo(
    front: Front, generator: ScriptedGenerator, checkpoints: dict[str, Path]
) -> None:
    generator.served = [served("alpha", checkpoints["alpha"], slo_ttft_s=60.0)]
    await front.sync_models()
    body = {"model": "alpha", "prompt": "x"}
    await post(front.http_port, "/v1/completions", body)
    await post(front.http_port, "/v1/completions", {**body, "n": 2})
    generator.served = []
    await front.sync_models(members=("alpha-llm",))
    await post(front.http_port, "/v1/completions", body)
    found = {
        result: front.registry.get_sample_value(
            "muxserve_model_slo_requests_total",
            {"mux_namespace": "ns", "pool": "p", "model": "alpha-llm", "model_name": "alpha",
             "hop": "unit", "result": result})
        for result in ("good", "error")
    }  # fmt: skip
    assert found == {"good": 1, "error": 1}, "the client's own mistake counts nowhere"


async def test_a_model_without_a_tokenizer_is_not_listed_and_says_why(
    front: Front, generator: ScriptedGenerator, tmp_path: Path
) -> None:
    generator.served.append(served("bare", tmp_path))
    await front.sync_models()
    assert "tokenizer" in front.failures()["bare-llm"]
    status, answer, _ = await post(front.http_port, "/v1/completions",
                                   {"model": "bare", "prompt": "x"})  # fmt: skip
    assert status == 503
    assert "no usable tokenizer" in answer["error"]["message"]
    async with client_of(front.http_port) as client:
        assert [model.id async for model in client.models.list()] == ["alpha"]


async def test_ready_needs_a_model_and_health_does_not(generator: ScriptedGenerator) -> None:
    front = Front(generator, namespace="ns", pool="p", unit="u0")
    await front.start(HOST, 0, 0)
    try:
        async with aiohttp.ClientSession() as session:

            async def status(path: str) -> int:
                async with session.get(f"http://{HOST}:{front.http_port}{path}") as answer:
                    return answer.status

            assert (await status("/health"), await status("/ready")) == (200, 503)
            await front.sync_models()
            assert await status("/ready") == 200
    finally:
        await front.close()


async def test_a_taken_port_is_named(front: Front, generator: ScriptedGenerator) -> None:
    other = Front(generator, namespace="ns", pool="p", unit="u0")
    with pytest.raises(PeerError, match=f"port {HOST}:{front.http_port}"):
        await other.start(HOST, front.http_port, 0)


async def test_finish_by_length_is_said(client: openai.AsyncOpenAI,
                                        generator: ScriptedGenerator) -> None:  # fmt: skip
    generator.script = lambda r: outputs(ids("the fox"), rid=r.rid, finish=Finish.LENGTH)
    answer = await client.completions.create(model="alpha", prompt="x", max_tokens=5)
    assert answer.choices[0].finish_reason == "length"


async def test_streams_that_run_when_the_front_ends_are_told(generator: ScriptedGenerator) -> None:
    generator.pace = asyncio.Semaphore(1)
    front = Front(generator, namespace="ns", pool="p", unit="u0")
    await front.start(HOST, 0, 0)
    await front.sync_models()
    body = {"model": "alpha", "prompt": "the quick brown fox", "stream": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{HOST}:{front.http_port}/v1/completions", json=body) as answer,
    ):
        await answer.content.readany()
        await front.close()
        rest = (await answer.content.read()).decode()
    assert json.loads(rest.removeprefix("data: "))["error"]["code"] == "stream_cut"
    assert not generator.running
