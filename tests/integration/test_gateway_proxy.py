"""The gateway over real sockets, before real fronts."""

import asyncio
from pathlib import Path

import openai
import pytest

from front_builders import ScriptedGenerator, served, write_tokenizer
from gateway_builders import client_of, endpoint, running_front, running_gateway, table, until


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("chatty"))


@pytest.fixture
def generator(checkpoint: Path) -> ScriptedGenerator:
    return ScriptedGenerator([served("alpha", checkpoint)])


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
        assert answer.choices[0].text == streamed == "the fox"
        assert [model.id async for model in client.models.list()] == ["alpha"]
    assert generator.arrivals == {}, "the unit counts only what bypasses the gateway"
    assert gateway.metrics.counters["alpha-llm"].arrivals == 2


async def test_a_request_waits_until_an_endpoint_appears(generator: ScriptedGenerator) -> None:
    async with (
        running_front(generator) as front,
        running_gateway(table()) as gateway,
        client_of(gateway.http_port) as client,
    ):
        waiting = asyncio.create_task(client.completions.create(model="alpha", prompt="the"))
        await until(gateway, held=1)
        gateway.book.apply(table(endpoint(front), generation=2))
        assert (await waiting).choices[0].text == "the"


async def test_an_unknown_model_is_404_and_lists_the_served_ones(
    generator: ScriptedGenerator,
) -> None:
    async with (
        running_front(generator) as front,
        running_gateway(table(endpoint(front))) as gateway,
        client_of(gateway.http_port) as client,
    ):
        with pytest.raises(openai.NotFoundError, match="served models: alpha"):
            await client.completions.create(model="beta", prompt="the")
