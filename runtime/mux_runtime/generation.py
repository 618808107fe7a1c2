"""The seam between the HTTP front and the unit scheduler: requests in, outputs out.

The front knows text and HTTP; the scheduler knows token ids and grants. Neither knows the other,
so the front is tested over a scripted generator and the scheduler without HTTP.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from mux_core.engine import Output, Sampling
from mux_core.errors import CapacityError, PeerError, RequestRefused

__all__ = ["GenerationRequest", "Generator", "ModelNotServing", "QueueFull", "RequestRefused",
           "ServedModel"]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request for one model: token ids in. `rid` is unique in the unit."""

    rid: str
    model: str
    prompt: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that can serve now. `path` holds its tokenizer; lengths in tokens.

    `kv_limit_tokens`: prompt + output that the model's KV limit can ever hold. SLO targets absent
    mean best effort.
    """

    model: str
    served_name: str
    path: str
    port: int
    max_model_len: int
    kv_limit_tokens: int
    vocab: int
    eos_token_ids: tuple[int, ...]
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None


class ModelNotServing(PeerError):
    """The model is starting, draining or failed; `reason` says which."""

    def __init__(self, message: str, *, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = reason


class QueueFull(CapacityError):
    """The model's queue in this unit is at its bound."""


class Generator(Protocol):
    """The unit scheduler as the front sees it."""

    def models(self) -> tuple[ServedModel, ...]:
        """Models that can serve now, by served name."""
        ...

    def submit(self, request: GenerationRequest) -> AsyncIterator[Output]:
        """Queues the request at once and yields its outputs; the last one has `finish`.

        Raises RequestRefused, QueueFull or ModelNotServing before the first output, PeerError
        when the request was lost after it. Closing the iterator aborts the request: its KV rows
        are free after the model's next step.
        """
        ...

    def count_arrival(self, model: str) -> None:
        """Counts one arrival of `model`, before any queue or rejection."""
        ...
