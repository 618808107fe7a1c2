"""Whether a request may be queued: each refusal names subject, value, limit and fix."""

from mux_core.lifecycle import MemberState
from mux_runtime.generation import GenerationRequest, ModelNotServing, QueueFull, RequestRefused
from mux_runtime.scheduler.members import Member

QUEUE_FULL = "QueueFull"


def check_serving(member: Member | None, model: str) -> Member:
    if member is None:
        raise ModelNotServing(f"model {model}: not in this unit", reason="NotInUnit")
    if member.state is not MemberState.SERVING:
        said = f": {member.message}" if member.message else ""
        raise ModelNotServing(f"model {model}: {member.reason}{said}", reason=member.reason)
    return member


def check_request(member: Member, asked: GenerationRequest, *, kv_tokens: int) -> None:
    """Raises RequestRefused for what can never be served."""
    if not asked.prompt:
        raise RequestRefused(f"request {asked.rid}: the prompt is empty; send at least one token")
    if asked.sampling.max_tokens < 1:
        raise RequestRefused(f"request {asked.rid}: max_tokens {asked.sampling.max_tokens}; "
                             "at least 1")  # fmt: skip
    vocab = member.description.vocab
    if not 0 <= min(asked.prompt) <= max(asked.prompt) < vocab:
        low, high = min(asked.prompt), max(asked.prompt)
        raise RequestRefused(f"request {asked.rid}: token ids {low} to {high}; {member.model} "
                             f"has 0 to {vocab - 1}")  # fmt: skip
    length = len(asked.prompt) + asked.sampling.max_tokens
    for limit, what in ((member.max_model_len, "context length"), (kv_tokens, "KV limit")):
        if length > limit:
            raise RequestRefused(f"request {asked.rid}: {len(asked.prompt)} prompt tokens and "
                                 f"{asked.sampling.max_tokens} to generate; the {what} of "
                                 f"{member.model} is {limit}; shorten the prompt or "
                                 "lower max_tokens")  # fmt: skip


def check_queue(member: Member, *, max_queue: int) -> None:
    if len(member.queue) >= max_queue:
        raise QueueFull(f"model {member.model}: {len(member.queue)} requests wait, at most "
                        f"{max_queue}; try again later", reason=QUEUE_FULL)  # fmt: skip
