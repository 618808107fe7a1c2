"""What a model can hold: prompt, output and token ids against its limits."""

from mux_runtime.generation import ServedModel
from mux_runtime.openai.errors import ApiError, invalid
from mux_runtime.openai.requests import Options


def settled_max_tokens(model: ServedModel, prompt_tokens: int, options: Options,
                       *, param: str) -> int:  # fmt: skip
    """How many tokens may be generated. Raises ApiError when prompt and output cannot fit."""
    if prompt_tokens == 0:
        raise invalid(f"{param}: 0 tokens, at least 1; send some text", param=param,
                      code="invalid_value")  # fmt: skip
    limit, name, code = _limit(model)
    room = limit - prompt_tokens
    if room < 1:
        raise invalid(f"{param}: {prompt_tokens} tokens, model {model.served_name!r} takes at "
                      f"most {limit - 1} ({name} {limit}); shorten it", param=param,
                      code=code)  # fmt: skip
    wanted = room if options.max_tokens is None else options.max_tokens
    if wanted > room:
        raise invalid(f"{param}: {prompt_tokens} tokens and max_tokens {wanted} exceed {name} "
                      f"{limit} of model {model.served_name!r}; lower max_tokens to {room} or "
                      "shorten the prompt", param="max_tokens", code=code)  # fmt: skip
    if options.min_tokens > wanted:
        raise invalid(f"min_tokens: {options.min_tokens} exceeds the {wanted} tokens that fit; "
                      "lower it", param="min_tokens", code="invalid_value")  # fmt: skip
    return wanted


def _limit(model: ServedModel) -> tuple[int, str, str]:
    """The tighter of the two limits, its name and the error code that belongs to it."""
    if model.kv_limit_tokens < model.max_model_len:
        return model.kv_limit_tokens, "the KV limit in tokens,", "kv_limit_exceeded"
    return model.max_model_len, "max_model_len", "context_length_exceeded"


def check_token_ids(model: ServedModel, ids: tuple[int, ...], param: str) -> None:
    """Raises ApiError for the first id that the model does not have."""
    worst = max(ids, default=0)
    if worst >= model.vocab:
        raise _unknown_token(model, worst, param)


def _unknown_token(model: ServedModel, token: int, param: str) -> ApiError:
    return invalid(f"{param}: token id {token}, model {model.served_name!r} has ids 0 to "
                   f"{model.vocab - 1}; use its tokenizer", param=param,
                   code="invalid_value")  # fmt: skip
