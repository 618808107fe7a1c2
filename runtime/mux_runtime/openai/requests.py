"""The two request bodies, checked and turned into values; text is not tokenised here.

Ranges are OpenAI's where it has one, else vLLM's. Two are wider than OpenAI's, as in vLLM:
`stop` takes up to 16 strings (OpenAI: 4), completions' `logprobs` goes to 20 (OpenAI: 5).
"""

from dataclasses import dataclass
from typing import Final

from mux_core.engine import Sampling
from mux_runtime.openai import fields
from mux_runtime.openai.errors import invalid
from mux_runtime.openai.fields import Body

MAX_STOPS: Final = 16
MAX_LOGPROBS: Final = 20
MAX_BODY_BYTES: Final = 8 << 20
COMPLETION_MAX_TOKENS: Final = 16
"""What /v1/completions generates when not told (OpenAI's default)."""

_INT64: Final = 1 << 63
_COMMON: Final = frozenset({
    "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop",
    "presence_penalty", "frequency_penalty", "logprobs", "ignore_eos", "min_tokens", "top_k",
    "min_p", "repetition_penalty", "stop_token_ids", "return_token_ids",
})  # fmt: skip
_COMPLETION: Final = _COMMON | {"prompt"}
_CHAT: Final = _COMMON | {"messages", "top_logprobs", "max_completion_tokens"}
_ROLES: Final = ("system", "developer", "user", "assistant")
_MESSAGE_NULLS: Final = frozenset(
    {"refusal", "tool_calls", "function_call", "audio", "annotations", "reasoning_content"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What both endpoints have in common.

    `max_tokens` None means as many as fit. `seed` None means draw one. `logprobs` is the number
    of alternatives per token (None: report none, 0: the chosen token alone).
    """

    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    return_token_ids: bool = False

    def sampling(self, *, max_tokens: int, seed: int) -> Sampling:
        """The engine's view, with the two values that only the front can settle."""
        return Sampling(
            max_tokens=max_tokens, temperature=self.temperature, top_p=self.top_p,
            top_k=self.top_k, min_p=self.min_p, seed=seed, logprobs=self.logprobs,
            presence_penalty=self.presence_penalty, frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty, stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos, min_tokens=self.min_tokens,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """POST /v1/completions; the prompt is text or token ids."""

    model: str
    prompt: str | tuple[int, ...]
    options: Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """POST /v1/chat/completions."""

    model: str
    messages: tuple[Message, ...]
    options: Options


def model_of(body: Body) -> str:
    """The name of the model that is asked for."""
    return fields.text(body, "model")


def completion_request(body: Body) -> CompletionRequest:
    """Raises ApiError naming the first field that is wrong."""
    fields.refuse_unsupported(body, _COMPLETION)
    limit = fields.integer(body, "max_tokens", low=1)
    logprobs = fields.integer(body, "logprobs", low=0, high=MAX_LOGPROBS)
    return CompletionRequest(
        model=model_of(body),
        prompt=_prompt(body.get("prompt")),
        options=_options(
            body, max_tokens=COMPLETION_MAX_TOKENS if limit is None else limit, logprobs=logprobs
        ),
    )


def chat_request(body: Body) -> ChatRequest:
    """Raises ApiError naming the first field that is wrong."""
    fields.refuse_unsupported(body, _CHAT)
    older = fields.integer(body, "max_tokens", low=1)
    newer = fields.integer(body, "max_completion_tokens", low=1)
    return ChatRequest(
        model=model_of(body),
        messages=_messages(body.get("messages")),
        options=_options(
            body, max_tokens=older if newer is None else newer, logprobs=_chat_logprobs(body)
        ),
    )


def _options(body: Body, *, max_tokens: int | None, logprobs: int | None) -> Options:
    stream = fields.flag(body, "stream")
    number = fields.number
    top_k = fields.integer(body, "top_k", low=-1) or 0
    return Options(
        stream=stream,
        include_usage=_include_usage(body, stream=stream),
        max_tokens=max_tokens,
        temperature=number(body, "temperature", default=1.0, low=0, high=2),
        top_p=number(body, "top_p", default=1.0, low=0, high=1, above_low=True),
        top_k=max(0, top_k),  # -1 is vLLM's older word for "all"
        min_p=number(body, "min_p", default=0.0, low=0, high=1),
        seed=_seed(body),
        presence_penalty=number(body, "presence_penalty", default=0.0, low=-2, high=2),
        frequency_penalty=number(body, "frequency_penalty", default=0.0, low=-2, high=2),
        repetition_penalty=number(body, "repetition_penalty", default=1.0, low=0, high=2,
                                  above_low=True),
        stop=_stop(body.get("stop")),
        stop_token_ids=fields.token_ids(body.get("stop_token_ids") or [], "stop_token_ids"),
        ignore_eos=fields.flag(body, "ignore_eos"),
        min_tokens=_min_tokens(body, max_tokens),
        logprobs=logprobs,
        return_token_ids=fields.flag(body, "return_token_ids"),
    )  # fmt: skip


def _seed(body: Body) -> int | None:
    seed = fields.integer(body, "seed", low=-_INT64, high=_INT64 - 1)
    # -1 asks vLLM for a random one; other negative values are folded into the engine's range.
    return None if seed is None or seed == -1 else seed % _INT64


def _min_tokens(body: Body, max_tokens: int | None) -> int:
    value = fields.integer(body, "min_tokens", low=0) or 0
    if max_tokens is not None and value > max_tokens:
        raise invalid(f"min_tokens: {value} exceeds max_tokens {max_tokens}; lower it or raise "
                      "max_tokens", param="min_tokens", code="invalid_value")  # fmt: skip
    return value


def _include_usage(body: Body, *, stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid("stream_options: allowed only when stream is true; remove it or set "
                      "stream", param="stream_options", code="invalid_value")  # fmt: skip
    if not isinstance(options, dict):
        raise invalid("stream_options: must be an object, e.g. {\"include_usage\": true}",
                      param="stream_options", code="invalid_type")  # fmt: skip
    for name, value in options.items():
        harmless = name in ("continuous_usage_stats", "include_obfuscation") and not value
        if name != "include_usage" and not harmless:
            raise invalid(f"stream_options.{name}: not supported; remove it",
                          param=f"stream_options.{name}",
                          code="unsupported_parameter")  # fmt: skip
    return fields.flag(options, "include_usage")


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise invalid("stop: must be a string or a list of strings", param="stop",
                      code="invalid_type")  # fmt: skip
    if len(stops) > MAX_STOPS:
        raise invalid(f"stop: {len(stops)} strings, at most {MAX_STOPS}; send fewer",
                      param="stop", code="invalid_value")  # fmt: skip
    if "" in stops:
        raise invalid("stop: holds an empty string, which would stop everything; remove it",
                      param="stop", code="invalid_value")  # fmt: skip
    return tuple(dict.fromkeys(stops))


def _chat_logprobs(body: Body) -> int | None:
    wanted = fields.flag(body, "logprobs")
    top = fields.integer(body, "top_logprobs", low=0, high=MAX_LOGPROBS)
    if top and not wanted:
        raise invalid(f"top_logprobs: {top} needs logprobs to be true; set it",
                      param="top_logprobs", code="invalid_value")  # fmt: skip
    return (top or 0) if wanted else None


def _prompt(value: object) -> str | tuple[int, ...]:
    """Text or token ids of the one prompt; a list of exactly one prompt is that prompt."""
    if value is None:
        raise invalid("prompt: missing; send a string or a list of token ids", param="prompt",
                      code="missing_field")  # fmt: skip
    if isinstance(value, list) and value and isinstance(value[0], (str, list)):
        if len(value) > 1:
            raise invalid(f"prompt: {len(value)} prompts, at most 1 per request here; send "
                          "several requests", param="prompt",
                          code="unsupported_value")  # fmt: skip
        value = value[0]
    if isinstance(value, str):
        return value
    ids = fields.token_ids(value, "prompt")
    if not ids:
        raise invalid("prompt: 0 tokens, at least 1; send some text", param="prompt",
                      code="invalid_value")  # fmt: skip
    return ids


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise invalid('messages: must be a non-empty list, e.g. [{"role": "user", "content": '
                      '"Hi"}]', param="messages", code="invalid_type")  # fmt: skip
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(item: object, where: str) -> Message:
    if not isinstance(item, dict):
        raise invalid(f"{where}: must be an object with role and content", param=where,
                      code="invalid_type")  # fmt: skip
    for name, value in item.items():
        known = name in ("role", "content", "name")
        if not known and not (name in _MESSAGE_NULLS and value in (None, [])):
            raise invalid(f"{where}.{name}: not supported; remove it", param=f"{where}.{name}",
                          code="unsupported_parameter")  # fmt: skip
    role, name = item.get("role"), item.get("name")
    if role not in _ROLES:
        raise invalid(f"{where}.role: {role!r} is not supported; use one of {', '.join(_ROLES)}",
                      param=f"{where}.role", code="invalid_value")  # fmt: skip
    if name is not None and not isinstance(name, str):
        raise invalid(f"{where}.name: must be a string", param=f"{where}.name",
                      code="invalid_type")  # fmt: skip
    return Message(role=role, content=_content(item.get("content"), where), name=name)


def _content(value: object, where: str) -> str:
    """A message's text; several text parts are joined by line breaks, as vLLM does."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid(f"{where}.content: must be a string or a list of text parts",
                      param=f"{where}.content", code="invalid_type")  # fmt: skip
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise invalid(f"{where}.content: a part of type {kind!r} is not supported; send text "
                          "parts only", param=f"{where}.content",
                          code="unsupported_value")  # fmt: skip
        texts.append(part["text"])
    return "\n".join(texts)
