"""The front's text against transformers', for real checkpoints of every family."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mux_cli.tiny_models import TinyModel, write
from mux_core.errors import SpecError
from mux_runtime.front.detokenizer import Detokenizer
from mux_runtime.front.tokenizer import Tokenizer, load
from mux_runtime.openai.requests import Message

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
VOCAB = 600
IDS = st.lists(st.integers(0, VOCAB - 1), max_size=60)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
REUSED = settings(deadline=None, max_examples=60,
                  suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = TinyModel(family=request.param, layers=1, hidden=8, heads=1, kv_heads=1, head_dim=8,
                      intermediate=8, vocab=VOCAB)  # fmt: skip
    return write(model, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def reference(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
async def tokenizer(folder: Path) -> Tokenizer:
    return await load(str(folder))


@REUSED
@given(ids=IDS)
def test_the_stream_of_any_tokens_is_their_decoding(
    tokenizer: Tokenizer, reference: Any, ids: list[int]
) -> None:
    detokenizer = Detokenizer(tokenizer.decode, tokenizer.special)
    streamed = "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()
    assert streamed == reference.decode(ids, skip_special_tokens=True)


@REUSED
@given(text=TEXTS)
def test_a_prompt_s_tokens_are_transformers(
    tokenizer: Tokenizer, reference: Any, text: str
) -> None:
    assert list(tokenizer._encode(text, True)) == reference(text)["input_ids"]


async def test_a_conversation_s_tokens_are_transformers(
    tokenizer: Tokenizer, reference: Any
) -> None:
    turns = [("system", "be brief"), ("user", "l'été 猫")]
    found = await tokenizer.encode_chat(tuple(Message(role=r, content=c) for r, c in turns))
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True,
                                             return_dict=False)  # fmt: skip
    assert list(found) == expected


@pytest.mark.parametrize("content", [None, "{", "{}"], ids=["missing", "cut off", "empty"])
async def test_a_checkpoint_without_a_usable_tokenizer_is_named(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(SpecError, match=f"checkpoint {tmp_path}: no usable tokenizer"):
        await load(str(tmp_path))
