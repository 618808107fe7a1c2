"""Bodies of both endpoints: what is read, and what is refused by name."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux_core.engine import Sampling
from mux_runtime.openai.errors import ApiError
from mux_runtime.openai.fields import IGNORED, NEUTRAL, decode_object
from mux_runtime.openai.requests import (
    _CHAT,
    _COMPLETION,
    ChatRequest,
    CompletionRequest,
    Message,
    Options,
    chat_request,
    completion_request,
)

USER = [{"role": "user", "content": "hi"}]


def completion(**fields: Any) -> CompletionRequest:
    return completion_request({"model": "m", "prompt": "p", **fields})


def chat(**fields: Any) -> ChatRequest:
    return chat_request({"model": "m", "messages": USER, **fields})


def test_defaults_are_openai_s() -> None:
    assert completion().options == Options(max_tokens=16)
    assert chat().options == Options(max_tokens=None)


def test_every_sampling_field_reaches_the_engine() -> None:
    options = completion(
        max_tokens=7, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=3, presence_penalty=1,
        frequency_penalty=-1, repetition_penalty=1.1, stop_token_ids=[4, 5], ignore_eos=True,
        min_tokens=2, logprobs=3,
    ).options  # fmt: skip
    assert options.sampling(max_tokens=7, seed=3) == Sampling(
        max_tokens=7, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=3,
        presence_penalty=1.0, frequency_penalty=-1.0, repetition_penalty=1.1,
        stop_token_ids=(4, 5), ignore_eos=True, min_tokens=2, logprobs=3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        pytest.param({"stop": "x"}, "stop", ("x",), id="one stop string"),
        pytest.param({"stop": ["x", "y", "x"]}, "stop", ("x", "y"), id="stop strings, once each"),
        pytest.param({"top_k": -1}, "top_k", 0, id="vLLM's old word for all"),
        pytest.param({"seed": -1}, "seed", None, id="a random seed"),
        pytest.param({"seed": -2}, "seed", 2**63 - 2, id="a negative seed is folded"),
        pytest.param({"temperature": None}, "temperature", 1.0, id="null is absent"),
        pytest.param({"stream": True, "stream_options": {"include_usage": True}}, "include_usage",
                     True, id="usage in the stream"),
    ],
)  # fmt: skip
def test_a_field_is_read(fields: dict[str, Any], name: str, value: object) -> None:
    assert getattr(completion(**fields).options, name) == value


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        pytest.param("text", "text", id="text"),
        pytest.param(["text"], "text", id="a list of one text"),
        pytest.param([1, 2], (1, 2), id="token ids"),
        pytest.param([[1, 2]], (1, 2), id="a list of one list of token ids"),
    ],
)
def test_a_prompt_is_text_or_token_ids(prompt: object, read: object) -> None:
    assert completion(prompt=prompt).prompt == read


def test_max_completion_tokens_wins_over_its_older_name() -> None:
    assert chat(max_tokens=3, max_completion_tokens=5).options.max_tokens == 5


def test_chat_logprobs_are_a_flag_and_a_number() -> None:
    assert chat(logprobs=True).options.logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).options.logprobs == 4
    assert chat(logprobs=False).options.logprobs is None


def test_messages_may_come_in_parts_and_from_earlier_answers() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
    ]
    assert chat(messages=messages).messages == (
        Message(role="user", content="a\nb"),
        Message(role="assistant", content="c"),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": True},
        {"n": 1, "best_of": 1, "echo": False, "suffix": None, "logit_bias": None},
        {"response_format": {"type": "text"}, "skip_special_tokens": True},
        {"tools": None, "tool_choice": "none", "parallel_tool_calls": None},
    ],
    ids=["harmless", "neutral", "neutral objects", "null"],
)
def test_what_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert completion(**fields).options == Options(max_tokens=16)


REFUSED = [
    pytest.param({"n": 2}, "n", "n: 2, at most 1", id="several choices"),
    pytest.param({"best_of": 3}, "best_of", "best_of: 3 is not supported", id="best_of"),
    pytest.param({"echo": True}, "echo", "echo: true is not supported", id="echo"),
    pytest.param({"suffix": "x"}, "suffix", 'suffix: "x" is not supported', id="suffix"),
    pytest.param({"logit_bias": {"1": 2}}, "logit_bias", "logit_bias: ", id="logit_bias"),
    pytest.param({"tools": [{}]}, "tools", "tools: ", id="tools"),
    pytest.param({"response_format": {"type": "json_object"}}, "response_format",
                 "response_format: ", id="json output"),
    pytest.param({"temprature": 1}, "temprature", "unknown field", id="a misspelled field"),
    pytest.param({"temperature": 2.5}, "temperature", "2.5 is out of range; send 0 to 2",
                 id="hot"),
    pytest.param({"temperature": "hot"}, "temperature", '"hot" is a string', id="no number"),
    pytest.param({"temperature": True}, "temperature", "true is a boolean", id="a flag"),
    pytest.param({"top_p": 0}, "top_p", "send above 0 to 1", id="top_p zero"),
    pytest.param({"top_p": 1.5}, "top_p", "out of range", id="top_p above one"),
    pytest.param({"top_k": -2}, "top_k", "at least -1", id="top_k"),
    pytest.param({"top_k": 1.5}, "top_k", "whole number", id="top_k in parts"),
    pytest.param({"min_p": 2}, "min_p", "send 0 to 1", id="min_p"),
    pytest.param({"presence_penalty": 3}, "presence_penalty", "send -2 to 2", id="presence"),
    pytest.param({"frequency_penalty": -3}, "frequency_penalty", "send -2 to 2", id="frequency"),
    pytest.param({"repetition_penalty": 0}, "repetition_penalty", "above 0", id="repetition"),
    pytest.param({"seed": 2**63}, "seed", "out of range", id="seed"),
    pytest.param({"max_tokens": 0}, "max_tokens", "at least 1", id="no tokens"),
    pytest.param({"max_tokens": 3, "min_tokens": 4}, "min_tokens", "exceeds max_tokens 3",
                 id="more than the most"),
    pytest.param({"stop": [""]}, "stop", "empty string", id="empty stop"),
    pytest.param({"stop": 5}, "stop", "string or a list", id="stop is no text"),
    pytest.param({"stop": [str(i) for i in range(17)]}, "stop", "17 strings, at most 16",
                 id="too many stops"),
    pytest.param({"stop_token_ids": [-1]}, "stop_token_ids", "not a token id", id="no token"),
    pytest.param({"stream": "yes"}, "stream", "must be true or false", id="stream"),
    pytest.param({"stream_options": {"include_usage": True}}, "stream_options", "only when stream",
                 id="stream options without stream"),
    pytest.param({"stream": True, "stream_options": {"other": 1}}, "stream_options.other",
                 "not supported", id="unknown stream option"),
    pytest.param({"ignore_eos": 1}, "ignore_eos", "must be true or false", id="ignore_eos"),
    pytest.param({"model": None}, "model", "missing", id="no model"),
    pytest.param({"model": 5}, "model", "must be a non-empty string", id="model is a number"),
]  # fmt: skip


@pytest.mark.parametrize("endpoint", [completion, chat])
@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
def test_both_endpoints_refuse(
    endpoint: Any, fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        endpoint(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert str(caught.value).startswith(param)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        pytest.param({"prompt": None}, "prompt", "missing", id="no prompt"),
        pytest.param({"prompt": ["a", "b"]}, "prompt", "2 prompts, at most 1", id="two prompts"),
        pytest.param({"prompt": [[1], [2]]}, "prompt", "2 prompts", id="two lists of tokens"),
        pytest.param({"prompt": []}, "prompt", "0 tokens, at least 1", id="empty list"),
        pytest.param({"prompt": [1, "a"]}, "prompt", "not a token id", id="mixed list"),
        pytest.param({"prompt": 5}, "prompt", "is a number", id="prompt is a number"),
        pytest.param({"logprobs": 21}, "logprobs", "0 to 20", id="too many logprobs"),
        pytest.param({"logprobs": True}, "logprobs", "is a boolean", id="chat's logprobs"),
        pytest.param({"max_completion_tokens": 5}, "max_completion_tokens", "unknown field",
                     id="chat's name of max_tokens"),
    ],
)  # fmt: skip
def test_completions_refuse(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        completion(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        pytest.param({"messages": []}, "messages", "non-empty list", id="no messages"),
        pytest.param({"messages": "hi"}, "messages", "non-empty list", id="messages as text"),
        pytest.param({"messages": ["hi"]}, "messages[0]", "object with role", id="a bare text"),
        pytest.param({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role",
                     "'tool' is not supported", id="unknown role"),
        pytest.param({"messages": [{"role": "user", "content": None}]}, "messages[0].content",
                     "must be a string", id="no content"),
        pytest.param({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                     "messages[0].content", "'image_url' is not supported", id="a picture"),
        pytest.param({"messages": [{"role": "user", "content": "x", "mood": 1}]},
                     "messages[0].mood", "not supported", id="unknown message field"),
        pytest.param({"top_logprobs": 2}, "top_logprobs", "needs logprobs", id="top alone"),
        pytest.param({"logprobs": 2}, "logprobs", "must be true or false",
                     id="completions' logprobs"),
        pytest.param({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20",
                     id="too many alternatives"),
        pytest.param({"prompt": "x"}, "prompt", "unknown field", id="a prompt"),
    ],
)  # fmt: skip
def test_chat_refuses(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(b"{", "not JSON", id="cut off"),
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b'{"a": NaN}', "not JSON", id="not a JSON number"),
        pytest.param(b'"\xff"', "not JSON", id="not UTF-8"),
        pytest.param(b"[" * 5000 + b"]" * 5000, "nested too deeply", id="nested too deeply"),
        pytest.param(b"[]", "is a list, must be one JSON object", id="a list"),
        pytest.param(b"3", "is a number", id="a number"),
        pytest.param(
            b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply", id="a deep nest"
        ),
    ],
)
def test_a_body_that_is_no_object_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        decode_object(raw)
    assert caught.value.code == "invalid_json"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = sorted(_COMPLETION | _CHAT | IGNORED | set(NEUTRAL))


@pytest.mark.parametrize("read", [completion_request, chat_request])
@given(name=st.sampled_from(FIELDS), value=JSON)
def test_whatever_a_field_holds_is_read_or_refused(read: Any, name: str, value: object) -> None:
    body = {"model": "m", "prompt": "p", "messages": USER}
    del body["prompt" if read is chat_request else "messages"]
    with contextlib.suppress(ApiError):
        read({**body, name: value})


def test_an_error_is_openai_s_object() -> None:
    with pytest.raises(ApiError) as caught:
        completion(n=3)
    assert msgspec.json.decode(caught.value.body()) == {
        "error": {
            "message": "n: 3, at most 1 choice per request here; send several requests",
            "type": "invalid_request_error",
            "param": "n",
            "code": "unsupported_value",
        }
    }
