"""Deltas to OpenAI's bytes: one class per endpoint, each writing whole answers and chunks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from mux_core.engine import TokenLogprob
from mux_runtime.front.logprobs import chat_logprobs, completion_logprobs
from mux_runtime.front.textstream import Delta
from mux_runtime.front.tokenizer import Tokenizer
from mux_runtime.openai.requests import Options
from mux_runtime.openai.responses import (
    DONE,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Usage,
    event,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What every answer and chunk of one request repeats."""

    id: str
    created: int
    model: str
    prompt: tuple[int, ...]
    options: Options
    tokenizer: Tokenizer

    @property
    def prompt_token_ids(self) -> list[int] | UnsetType:
        return list(self.prompt) if self.options.return_token_ids else UNSET

    def token_ids(self, delta: Delta) -> list[int] | UnsetType:
        return list(delta.tokens) if self.options.return_token_ids else UNSET

    def usage_field(self) -> Usage | UnsetType | None:
        """`usage` of ordinary chunks: null when the last one will carry it."""
        return None if self.options.include_usage else UNSET

    def worth_a_chunk(self, delta: Delta) -> bool:
        """Tokens without text get a chunk only if the client asked for more than text."""
        asked = self.options.return_token_ids or self.options.logprobs is not None
        return bool(delta.text or (asked and delta.tokens))


class Answer(Protocol):
    """Turns one request's deltas into bytes; remembers what it has written."""

    def opening(self) -> bytes:
        """Events before the first delta."""
        ...

    def chunk(self, delta: Delta) -> bytes:
        """Events of one delta; empty when there is nothing to say yet."""
        ...

    def closing(self, usage: Usage) -> bytes:
        """Events after the last delta."""
        ...

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> bytes:
        """The answer at once."""
        ...


def joined(deltas: Sequence[Delta]) -> Delta:
    """All deltas as one."""
    return Delta(
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        finish=deltas[-1].finish if deltas else None,
    )


class CompletionAnswer:
    """The answer of /v1/completions."""

    def __init__(self, heading: Heading) -> None:
        self._heading = heading
        self._offset = 0
        self._is_first = True

    def opening(self) -> bytes:
        return b""

    def chunk(self, delta: Delta) -> bytes:
        if delta.finish is None and not self._heading.worth_a_chunk(delta):
            return b""
        return event(self._completion([self._choice(delta)], self._heading.usage_field()))

    def closing(self, usage: Usage) -> bytes:
        if not self._heading.options.include_usage:
            return DONE
        return event(self._completion([], usage)) + DONE

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> bytes:
        return msgspec.json.encode(self._completion([self._choice(joined(deltas))], usage))

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | UnsetType | None
    ) -> Completion:
        head = self._heading
        return Completion(id=head.id, created=head.created, model=head.model, choices=choices,
                          usage=usage)  # fmt: skip

    def _choice(self, delta: Delta) -> CompletionChoice:
        head = self._heading
        prompt = head.prompt_token_ids if self._is_first else UNSET
        self._is_first = False
        return CompletionChoice(
            text=delta.text, logprobs=self._logprobs(delta.logprobs), finish_reason=delta.finish,
            token_ids=head.token_ids(delta), prompt_token_ids=prompt,
        )  # fmt: skip

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> CompletionLogprobs | None:
        if self._heading.options.logprobs is None:
            return None
        found = completion_logprobs(entries, self._heading.tokenizer.piece, offset=self._offset)
        self._offset += sum(len(token) for token in found.tokens)
        return found


class ChatAnswer:
    """The answer of /v1/chat/completions."""

    def __init__(self, heading: Heading) -> None:
        self._heading = heading

    def opening(self) -> bytes:
        choice = ChatChunkChoice(delta=ChatDelta(role="assistant", content=""))
        return event(self._chunk([choice], prompt=self._heading.prompt_token_ids))

    def chunk(self, delta: Delta) -> bytes:
        events = b""
        if self._heading.worth_a_chunk(delta):
            choice = ChatChunkChoice(
                delta=ChatDelta(content=delta.text), logprobs=self._logprobs(delta),
                token_ids=self._heading.token_ids(delta),
            )  # fmt: skip
            events += event(self._chunk([choice]))
        if delta.finish is not None:
            choice = ChatChunkChoice(delta=ChatDelta(), finish_reason=delta.finish)
            events += event(self._chunk([choice]))
        return events

    def closing(self, usage: Usage) -> bytes:
        if not self._heading.options.include_usage:
            return DONE
        return event(msgspec.structs.replace(self._chunk([]), usage=usage)) + DONE

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> bytes:
        head, all_of_it = self._heading, joined(deltas)
        choice = ChatChoice(
            message=ChatMessage(content=all_of_it.text), finish_reason=all_of_it.finish,
            logprobs=self._logprobs(all_of_it), token_ids=head.token_ids(all_of_it),
        )  # fmt: skip
        return msgspec.json.encode(ChatCompletion(
            id=head.id, created=head.created, model=head.model, choices=[choice], usage=usage,
            prompt_token_ids=head.prompt_token_ids,
        ))  # fmt: skip

    def _chunk(
        self, choices: list[ChatChunkChoice], *, prompt: list[int] | UnsetType = UNSET
    ) -> ChatChunk:
        head = self._heading
        return ChatChunk(id=head.id, created=head.created, model=head.model, choices=choices,
                         usage=head.usage_field(), prompt_token_ids=prompt)  # fmt: skip

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if self._heading.options.logprobs is None:
            return None
        return chat_logprobs(delta.logprobs, self._heading.tokenizer.piece)
