"""One request's outputs as text: what each step adds to the answer, and when it ends.

Knows nothing of HTTP. Tokens are taken one by one, so a stop string ends the answer at the same
token however the engine groups its outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mux_core.engine import Finish, Output, TokenLogprob
from mux_runtime.front.detokenizer import Detokenizer, StopStrings
from mux_runtime.openai.requests import Options


class Decoder(Protocol):
    """Text of tokens; `special` ones have none."""

    @property
    def special(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one output adds; `finish` is OpenAI's finish_reason."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None


class TextStream:
    """The answer to one request so far."""

    def __init__(self, decoder: Decoder, options: Options) -> None:
        self._detokenizer = Detokenizer(decoder.decode, decoder.special)
        self._stops = StopStrings(options.stop)
        self._min_tokens = options.min_tokens
        self.token_count = 0

    def push(self, output: Output) -> Delta:
        """Modifies the stream. After a delta with `finish`, nothing may be pushed."""
        text: list[str] = []
        for index, token in enumerate(output.tokens):
            self.token_count += 1
            ends = output.finish is Finish.STOP and index == len(output.tokens) - 1
            if not ends:  # the token that stops is no part of the text, special or not
                text.append(self._show(self._detokenizer.push(token)))
            if self._stops.hit:
                return self._delta(output, text, taken=index + 1, finish="stop")
        if output.finish is None:
            return self._delta(output, text, taken=len(output.tokens), finish=None)
        text.append(self._show(self._detokenizer.flush()))
        if self._stops.hit:
            return self._delta(output, text, taken=len(output.tokens), finish="stop")
        text.append(self._stops.flush())
        finish = "length" if output.finish is Finish.LENGTH else "stop"
        return self._delta(output, text, taken=len(output.tokens), finish=finish)

    def _show(self, piece: str) -> str:
        # As in vLLM, a stop string counts from the token after `min_tokens`.
        return self._stops.push(piece, armed=self.token_count > self._min_tokens)

    def _delta(self, output: Output, text: list[str], *, taken: int, finish: str | None) -> Delta:
        return Delta(text="".join(text), tokens=output.tokens[:taken],
                     logprobs=output.logprobs[:taken], finish=finish)  # fmt: skip
