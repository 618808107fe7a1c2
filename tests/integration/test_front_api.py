"""The front over real sockets, asked by the real OpenAI client."""

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from front_builders import ScriptedGenerator, served, write_tokenizer
from mux_runtime.front.app import Front


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("chatty"))


@pytest.fixture
async def generator(checkpoint: Path) -> ScriptedGenerator:
    return ScriptedGenerator([served("alpha", checkpoint)])


@pytest.fixture
async def front(generator: ScriptedGenerator) -> AsyncIterator[Front]:
    front = Front(generator, namespace="ns", pool="p", unit="u0")
    await front.start("127.0.0.1", 0, 0)
    await front.sync_models()
    yield front
    await front.close()


@pytest.fixture
async def client(front: Front) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{front.http_port}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["alpha"]
    assert (await client.models.retrieve("alpha")).id == "alpha"


async def test_a_completion_echoes_its_prompt(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="alpha", prompt="the quick fox", max_tokens=99)
    assert answer.choices[0].text == "the quick fox"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == answer.usage.prompt_tokens + 1
