"""What each output adds to an answer, and where it ends."""

from pathlib import Path

import pytest

from front_builders import byte_level, outputs, write_tokenizer
from mux_core.engine import Finish, Output
from mux_runtime.front.textstream import TextStream
from mux_runtime.front.tokenizer import Tokenizer, load
from mux_runtime.openai.requests import Options

END = 0


@pytest.fixture
async def tokenizer(tmp_path: Path) -> Tokenizer:
    return await load(str(write_tokenizer(tmp_path)))


def ids(text: str) -> list[int]:
    return list(byte_level().encode(text).ids)


def answer(tokenizer: Tokenizer, steps: list[Output], **options: object) -> tuple[str, str | None,
                                                                               int]:  # fmt: skip
    """Text, finish reason and token count after all steps, or until it ends."""
    stream = TextStream(tokenizer, Options(**options))  # type: ignore[arg-type]
    text, finish = "", None
    for step in steps:
        delta = stream.push(step)
        text, finish = text + delta.text, delta.finish
        if finish is not None:
            break
    return text, finish, stream.token_count


@pytest.mark.parametrize("group", [1, 2, 5, 100])
async def test_grouping_of_outputs_changes_nothing(tokenizer: Tokenizer, group: int) -> None:
    steps = outputs(ids("the quick brown fox STOP jumps"), group=group)
    text, finish, count = answer(tokenizer, steps, stop=("STOP",))
    assert (text, finish) == ("the quick brown fox ", "stop")
    assert count == len(ids("the quick brown fox STOP"))


async def test_the_token_that_stops_has_no_text(tokenizer: Tokenizer) -> None:
    steps = outputs([*ids("the fox"), *ids(",")], finish=Finish.STOP)
    assert answer(tokenizer, steps)[:2] == ("the fox", "stop")


async def test_an_end_token_that_is_ignored_has_no_text_either(tokenizer: Tokenizer) -> None:
    steps = outputs([*ids("the"), END, *ids(" fox")])
    assert answer(tokenizer, steps, ignore_eos=True)[:2] == ("the fox", "length")


async def test_half_a_stop_string_at_the_end_is_text(tokenizer: Tokenizer) -> None:
    steps = outputs(ids("the fox STO"))
    assert answer(tokenizer, steps, stop=("STOP",))[:2] == ("the fox STO", "length")


async def test_half_a_character_at_the_end_is_shown_as_such(tokenizer: Tokenizer) -> None:
    tokens = ids("fox 🐿")[:-1]
    expected = byte_level().decode(tokens)
    assert answer(tokenizer, outputs(tokens))[:2] == (expected, "length")


async def test_stop_strings_wait_for_min_tokens(tokenizer: Tokenizer) -> None:
    tokens = ids("the fox the dog")
    text, finish, _ = answer(tokenizer, outputs(tokens), stop=("the",), min_tokens=len(ids("the")))
    assert (text, finish) == ("the fox ", "stop")


async def test_tokens_after_a_stop_string_are_not_counted(tokenizer: Tokenizer) -> None:
    tokens = ids("fox STOP jumps over")
    stream = TextStream(tokenizer, Options(stop=("STOP",)))
    delta = stream.push(outputs(tokens, group=99, logprobs=2)[0])
    assert len(delta.tokens) == len(delta.logprobs) == len(ids("fox STOP")) == stream.token_count
