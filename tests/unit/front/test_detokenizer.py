"""Text in pieces equals text at once, and stop strings do not care where pieces are cut."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from front_builders import CORPUS, SPECIALS, byte_fallback, byte_level
from mux_runtime.front.detokenizer import Detokenizer, StopStrings

BYTE_LEVEL = byte_level()
BYTE_FALLBACK = byte_fallback()
WORDS = st.lists(st.sampled_from(" ".join(CORPUS).split(" ")), max_size=8).map(" ".join)
UNICODE = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=30)


def decoder(tokenizer: Any) -> Any:
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def pieces(tokenizer: Any, tokens: list[int]) -> list[str]:
    special = frozenset(tokenizer.token_to_id(name) for name in SPECIALS)
    detokenizer = Detokenizer(decoder(tokenizer), special)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@settings(deadline=None)
@given(text=UNICODE | WORDS)
@example(text="naïve 東京 👨‍👩‍👧🚀")
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["bytes", "words"])
def test_pieces_of_a_text_join_to_it_and_hold_no_half_character(tokenizer: Any, text: str) -> None:
    tokens = tokenizer.encode(text).ids
    found = pieces(tokenizer, tokens)
    assert "".join(found) == decoder(tokenizer)(tokens)
    assert not any("\ufffd" in piece for piece in found)


@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=60))
def test_any_tokens_of_a_byte_level_model_join_to_their_decoding(tokens: list[int]) -> None:
    assert "".join(pieces(BYTE_LEVEL, tokens)) == decoder(BYTE_LEVEL)(tokens)


@settings(deadline=None)
@given(tokens=st.lists(st.integers(260, BYTE_FALLBACK.get_vocab_size() - 1), max_size=40))
def test_any_words_of_a_fallback_model_join_to_their_decoding(tokens: list[int]) -> None:
    assert "".join(pieces(BYTE_FALLBACK, tokens)) == decoder(BYTE_FALLBACK)(tokens)


def test_an_incomplete_character_waits_and_comes_at_the_end() -> None:
    rocket = BYTE_LEVEL.encode("🐿").ids
    assert len(rocket) > 1, "the corpus must not hold this one"
    *waiting, last = pieces(BYTE_LEVEL, rocket[:-1])
    assert waiting == [""] * (len(rocket) - 1)
    assert last == decoder(BYTE_LEVEL)(rocket[:-1])


def test_special_tokens_have_no_text() -> None:
    begin, end = BYTE_LEVEL.token_to_id("<|begin|>"), BYTE_LEVEL.token_to_id("<|end|>")
    tokens = [begin, *BYTE_LEVEL.encode("fox").ids, end, end, *BYTE_LEVEL.encode(" dog").ids]
    assert "".join(pieces(BYTE_LEVEL, tokens)) == "fox dog"


def test_bytes_that_never_become_a_character_do_not_pile_up() -> None:
    continuation = BYTE_LEVEL.token_to_id("©")  # the alphabet's letter for byte 0xA9
    calls: list[int] = []

    def decode(ids: Any) -> str:
        calls.append(len(ids))
        return str(decoder(BYTE_LEVEL)(ids))

    detokenizer = Detokenizer(decode)
    text = "".join(detokenizer.push(continuation) for _ in range(500)) + detokenizer.flush()
    assert text == decoder(BYTE_LEVEL)([continuation] * 500)
    assert max(calls) < 60


def first_stop(text: str, stops: tuple[str, ...]) -> str:
    """What StopStrings must show: read character by character, cut at the first complete one."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


LETTERS = st.text("abc", max_size=20)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


@given(chunks=st.lists(LETTERS, max_size=8), stops=STOPS)
@example(chunks=["abcd"], stops=("bc", "abcd"))
@example(chunks=["a", "b"], stops=("ab", "b"))
def test_a_stop_string_is_found_wherever_the_pieces_are_cut(
    chunks: list[str], stops: tuple[str, ...]
) -> None:
    matcher = StopStrings(stops)
    shown = ""
    for chunk in chunks:
        shown += matcher.push(chunk)
        assert not any(stop in shown for stop in stops), "nothing may be shown and then taken back"
        if matcher.hit:
            break
    whole = "".join(chunks)
    assert shown + matcher.flush() == first_stop(whole, stops)
    assert matcher.hit == any(stop in whole for stop in stops)


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    matcher = StopStrings(("STOP",))
    assert matcher.push("go ST") == "go "
    assert matcher.push("A") == "STA"
    assert matcher.push("ST") == ""
    assert matcher.push("OP and more") == ""
    assert matcher.hit


def test_before_min_tokens_a_stop_string_is_text() -> None:
    matcher = StopStrings(("ab",))
    assert matcher.push("ab", armed=False) == "ab"
    assert matcher.push("xab") == "x"
    assert matcher.hit
