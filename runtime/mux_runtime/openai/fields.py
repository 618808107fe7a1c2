"""Reads the fields of a request body one by one, and refuses by name what it cannot honour.

A field set to null counts as absent, as OpenAI's clients send it.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from mux_runtime.openai.errors import ApiError, invalid

Body = Mapping[str, object]

IGNORED: Final = frozenset(
    {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"}
)
"""Accepted without effect: they say nothing about what to generate."""

NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logit_bias": ({},),
    "tools": ([],), "tool_choice": ("none",), "functions": ([],), "function_call": ("none",),
    "parallel_tool_calls": (), "response_format": ({"type": "text"},), "modalities": (["text"],),
    "audio": (), "prediction": (), "reasoning_effort": (), "verbosity": (),
    "web_search_options": (), "moderation": (), "prompt_cache_options": (),
    "prompt_cache_retention": (), "use_beam_search": (False,), "length_penalty": (1,),
    "include_stop_str_in_output": (False,), "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,), "add_special_tokens": (True,),
    "truncate_prompt_tokens": (), "allowed_token_ids": (), "bad_words": ([],),
    "prompt_logprobs": (), "prompt_embeds": (), "return_tokens_as_token_ids": (False,),
    "structured_outputs": (), "guided_json": (), "guided_regex": (), "guided_choice": (),
    "guided_grammar": (), "priority": (0,), "chat_template": (), "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "documents": (),
}  # fmt: skip
"""Fields of OpenAI or vLLM that have no effect here, with the values that ask for none."""


def decode_object(raw: bytes) -> Body:
    """The body as an object. Raises ApiError when it is not JSON or not an object."""
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"request body: not JSON ({error}); send one JSON object",
                      code="invalid_json") from error  # fmt: skip
    except RecursionError as error:
        raise invalid("request body: nested too deeply to read; no request needs that",
                      code="invalid_json") from error  # fmt: skip
    if not isinstance(document, dict):
        raise invalid(f"request body: is {_kind(document)}, must be one JSON object",
                      code="invalid_json")  # fmt: skip
    return document


def refuse_unsupported(body: Body, known: frozenset[str]) -> None:
    """Raises ApiError for the first field, by name, that would silently lose its meaning."""
    for name in sorted(body):
        value = body[name]
        if name in known or name in IGNORED or (value is None and name in NEUTRAL):
            continue
        if name not in NEUTRAL:
            raise invalid(f"{name}: unknown field; remove it, or check its spelling", param=name,
                          code="unknown_field")  # fmt: skip
        if value not in NEUTRAL[name] or isinstance(value, bool) != _is_flag(name):
            raise _unsupported(name, value)


def _is_flag(name: str) -> bool:
    return any(isinstance(value, bool) for value in NEUTRAL[name])


def _unsupported(name: str, value: object) -> ApiError:
    if name == "n":
        return invalid(f"n: {_show(value)}, at most 1 choice per request here; send several "
                       "requests", param="n", code="unsupported_value")  # fmt: skip
    neutral = NEUTRAL[name]
    fix = f"leave it out or send {_show(neutral[0])}" if neutral else "leave it out"
    return invalid(f"{name}: {_show(value)} is not supported; {fix}", param=name,
                   code="unsupported_parameter")  # fmt: skip


def number(body: Body, name: str, *, default: float, low: float, high: float,
           above_low: bool = False) -> float:  # fmt: skip
    """A number from `low` to `high`; with `above_low`, `low` itself is out of range."""
    value = body.get(name)
    if value is None:
        return default
    bounds = f"{'above ' if above_low else ''}{low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(f"{name}: {_show(value)} is {_kind(value)}, must be a number, {bounds}",
                      param=name, code="invalid_type")  # fmt: skip
    if not low <= value <= high or (above_low and value == low):
        raise invalid(f"{name}: {_show(value)} is out of range; send {bounds}", param=name,
                      code="invalid_value")  # fmt: skip
    return float(value)


def integer(body: Body, name: str, *, low: int, high: int | None = None) -> int | None:
    """A whole number of at least `low`, or None when absent."""
    value = body.get(name)
    if value is None:
        return None
    bounds = f"at least {low}" if high is None else f"{low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(f"{name}: {_show(value)} is {_kind(value)}, must be a whole number, "
                      f"{bounds}", param=name, code="invalid_type")  # fmt: skip
    if value < low or (high is not None and value > high):
        raise invalid(f"{name}: {value} is out of range; send {bounds}", param=name,
                      code="invalid_value")  # fmt: skip
    return value


def flag(body: Body, name: str) -> bool:
    """A boolean, false when absent."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise invalid(f"{name}: {_show(value)} is {_kind(value)}, must be true or false",
                      param=name, code="invalid_type")  # fmt: skip
    return value


def text(body: Body, name: str) -> str:
    """A string that must be there and not be empty."""
    value = body.get(name)
    if value is None:
        raise invalid(f"{name}: missing; send it as a string", param=name, code="missing_field")
    if not isinstance(value, str) or not value:
        raise invalid(f"{name}: {_show(value)} is {_kind(value)}, must be a non-empty string",
                      param=name, code="invalid_type")  # fmt: skip
    return value


def token_ids(value: object, name: str) -> tuple[int, ...]:
    """A list of token ids; whether the model has them is checked where the model is known."""
    if not isinstance(value, list):
        raise invalid(f"{name}: is {_kind(value)}, must be a list of token ids", param=name,
                      code="invalid_type")  # fmt: skip
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise invalid(f"{name}: {_show(item)} is not a token id; send whole numbers from 0",
                          param=name, code="invalid_type")  # fmt: skip
    return tuple(value)


def _show(value: object) -> str:
    shown = msgspec.json.encode(value).decode()
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _kind(value: object) -> str:
    names = {bool: "a boolean", str: "a string", int: "a number", float: "a number",
             list: "a list", dict: "an object", type(None): "null"}  # fmt: skip
    return names.get(type(value), "another type")
