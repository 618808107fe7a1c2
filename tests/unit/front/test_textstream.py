"""What each output adds to an answer, and where it ends."""

import pytest

from front_builders import ByteLevelDecoder, byte_level, outputs
from mux_core.engine import Finish, Output
from mux_runtime.front.textstream import TextStream
from mux_runtime.openai.requests import Options

END = 0


def ids(text: str) -> list[int]:
    return list(byte_level().encode(text).ids)


def answer(steps: list[Output], **options: object) -> tuple[str, str | None, int]:
    """Text, finish reason and token count after all steps, or until it ends."""
    stream = TextStream(ByteLevelDecoder(), Options(**options))  # type: ignore[arg-type]
    text, finish = "", None
    for step in steps:
        delta = stream.push(step)
        text, finish = text + delta.text, delta.finish
        if finish is not None:
            break
    return text, finish, stream.token_count


@pytest.mark.parametrize("group", [1, 2, 5, 100])
def test_grouping_of_outputs_changes_nothing(group: int) -> None:
    steps = outputs(ids("the quick brown fox STOP jumps"), group=group)
    text, finish, count = answer(steps, stop=("STOP",))
    assert (text, finish) == ("the quick brown fox ", "stop")
    assert count == len(ids("the quick brown fox STOP"))


def test_the_token_that_stops_has_no_text() -> None:
    steps = outputs([*ids("the fox"), *ids(",")], finish=Finish.STOP)
    assert answer(steps)[:2] == ("the fox", "stop")


def test_an_end_token_that_is_ignored_has_no_text_either() -> None:
    steps = outputs([*ids("the"), END, *ids(" fox")])
    assert answer(steps, ignore_eos=True)[:2] == ("the fox", "length")


def test_half_a_stop_string_at_the_end_is_text() -> None:
    steps = outputs(ids("the fox STO"))
    assert answer(steps, stop=("STOP",))[:2] == ("the fox STO", "length")


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    tokens = ids("fox 🐿")[:-1]
    expected = byte_level().decode(tokens)
    assert answer(outputs(tokens))[:2] == (expected, "length")


def test_stop_strings_wait_for_min_tokens() -> None:
    tokens = ids("the fox the dog")
    text, finish, _ = answer(outputs(tokens), stop=("the",), min_tokens=len(ids("the")))
    assert (text, finish) == ("the fox ", "stop")


def test_tokens_after_a_stop_string_are_not_counted() -> None:
    tokens = ids("fox STOP jumps over")
    stream = TextStream(ByteLevelDecoder(), Options(stop=("STOP",)))
    delta = stream.push(outputs(tokens, group=99, logprobs=2)[0])
    assert len(delta.tokens) == len(delta.logprobs) == len(ids("fox STOP")) == stream.token_count
