"""Log probabilities in the two shapes OpenAI has for them."""

from collections.abc import Callable, Sequence

from mux_core.engine import TokenLogprob
from mux_runtime.openai.responses import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot say; vLLM's choice."""

Piece = Callable[[int], str]


def completion_logprobs(
    entries: Sequence[TokenLogprob], piece: Piece, *, offset: int
) -> CompletionLogprobs:
    """`offset`: characters of the answer before the first of these tokens."""
    tokens = [piece(entry.token) for entry in entries]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[_finite(entry.logprob) for entry in entries],
        top_logprobs=[_alternatives(entry, piece) for entry in entries],
        text_offset=offsets,
    )


def _alternatives(entry: TokenLogprob, piece: Piece) -> dict[str, float]:
    """The most likely tokens; the chosen one is among them, as at OpenAI."""
    found: dict[str, float] = {}
    for token, value in (*entry.top, (entry.token, entry.logprob)):
        found.setdefault(piece(token), _finite(value))
    return found


def chat_logprobs(entries: Sequence[TokenLogprob], piece: Piece) -> ChatLogprobs:
    return ChatLogprobs(content=[_chat_token(entry, piece) for entry in entries])


def _chat_token(entry: TokenLogprob, piece: Piece) -> ChatLogprob:
    text = piece(entry.token)
    return ChatLogprob(
        token=text,
        logprob=_finite(entry.logprob),
        bytes=list(text.encode()),
        top_logprobs=[_top(token, value, piece) for token, value in entry.top],
    )


def _top(token: int, value: float, piece: Piece) -> TopLogprob:
    text = piece(token)
    return TopLogprob(token=text, logprob=_finite(value), bytes=list(text.encode()))


def _finite(value: float) -> float:
    return max(value, _LOWEST)
