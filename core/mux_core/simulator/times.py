"""How long a step takes: a member's profile, and what runs beside it.

Alone, a step takes what the profile says for its batch and mean length, at its share of the SMs,
plus the estimator's scheduling time per decoding sequence. Beside others it is slowed as the
estimator slows it (`mux_core.costmodel.interference`), by what is in flight when it starts.
"""

from dataclasses import dataclass, field

from mux_core.costmodel.hardware import gpu_type
from mux_core.costmodel.interference import bus_share
from mux_core.costmodel.profile import Profile
from mux_core.estimator.memory import kv_per_token, overhead_s
from mux_core.estimator.unit import GroupKind
from mux_core.llm import Llm
from mux_core.placement import Share

CONTEXT_STEP = 8
"""Mean lengths of a decode batch are read in steps of so many tokens: the curve is that flat."""


@dataclass(slots=True, kw_only=True)
class StepTimes:
    """Seconds of one member's steps when nothing else runs. Remembers what it read."""

    profile: Profile
    tensor: int
    share: Share
    overhead_s: float
    weight_bytes: float
    token_bytes: float
    bandwidth: float
    _decodes: dict[tuple[int, int], float] = field(default_factory=dict)
    _prefills: dict[tuple[int, int], float] = field(default_factory=dict)

    def prefill_s(self, batch: int, tokens: int) -> float:
        """A prefill of `batch` prompts, or parts of prompts, of `tokens` tokens together."""
        mean = max(1, round(tokens / batch))
        seconds = self._prefills.get((batch, mean))
        if seconds is None:
            seconds = self._prefills[batch, mean] = self.profile.prefill_s(
                tensor=self.tensor, percent=self.share.prefill, batch=batch, tokens=mean
            )
        return seconds

    def decode_s(self, batch: int, context: int) -> float:
        """One step of `batch` sequences of `context` tokens together."""
        key = batch, context // (batch * CONTEXT_STEP)
        seconds = self._decodes.get(key)
        if seconds is None:
            mean = (key[1] + 0.5) * CONTEXT_STEP
            seconds = self._decodes[key] = batch * self.overhead_s + self.profile.decode_s(
                tensor=self.tensor, percent=self.share.decode, batch=batch, context=mean
            )
        return seconds

    def bus(self, context: int, seconds: float) -> float:
        """Part of the memory bus that a decode step of that length asks for."""
        return bus_share(self.weight_bytes + context * self.token_bytes, seconds,
                         bandwidth=self.bandwidth)  # fmt: skip


def step_times(llm: Llm, kind: GroupKind, share: Share, profile: Profile) -> StepTimes:
    return StepTimes(
        profile=profile, tensor=kind.gpus, share=share, overhead_s=overhead_s(llm),
        weight_bytes=llm.weight_bytes, token_bytes=kv_per_token(llm),
        bandwidth=kind.gpus * gpu_type(kind.gpu).bandwidth,
    )  # fmt: skip
