"""One member of a unit whose shares are turns: its own steps, and how many requests it decodes.

The requests that decode share the member's steps equally, so their number is a birth-death process
that knows of output lengths nothing but the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from mux_core.costmodel.profile import profile_of
from mux_core.costmodel.table import StepTable
from mux_core.engine import kv_geometry
from mux_core.estimator.memory import kv_per_token
from mux_core.estimator.unit import Ask, GroupKind
from mux_core.llm import Llm
from mux_core.placement import Share
from mux_core.units import Percent
from mux_core.unitspec import UNIT_BYTES

MOST_BATCH = 256
"""Requests a member decodes at once, at most; as the scheduler's limits."""
TAIL = 0.01

Floats = NDArray[np.float64]
Lengths = Sequence[tuple[float, float]]
"""Equally likely (prompt, output) tokens of a model's requests."""

BATCH: Floats = np.arange(1.0, MOST_BATCH + 1)


def _none() -> Floats:
    return np.zeros(0)


@dataclass(slots=True, kw_only=True)
class TurnMember:
    """A member while its unit is settled.

    `prefills`: seconds of a prefill of each length, `steps`: of a decode step by batch, both alone.
    `context` and `output`: mean tokens that a step sees of a request, and that it decodes.

    The rest is what the unit makes of it. `waits`: seconds between two tokens by batch; `chances`
    of 0, 1, 2... requests decoding, at most as many as there is KV for (`most`); `busy`: part of
    the time that there are any, `busy_step`: its mean step then.
    """

    ask: Ask
    share: Share
    token_bytes: float
    block_tokens: int
    context: float
    output: float
    prefills: tuple[float, ...]
    steps: Floats
    most: int = MOST_BATCH
    busy: float = 0.0
    busy_step: float = 0.0
    waits: Floats = field(default_factory=_none)
    chances: Floats = field(default_factory=_none)

    @property
    def prefill_s(self) -> float:
        return sum(self.prefills) / len(self.prefills)

    @property
    def decoding(self) -> float:
        """Requests that decode, on average."""
        return float(BATCH @ self.chances[1:])

    @property
    def tokens_per_s(self) -> Floats:
        """What it decodes, by batch; requests share a step equally."""
        return self.chances[1:] * BATCH / self.waits

    @property
    def steps_per_token(self) -> float:
        return self.busy / self.decoding if len(self.chances) and self.decoding else 1.0

    @property
    def request_bytes(self) -> float:
        """KV of a request that decodes, on average; the last block is half full."""
        return (self.context + self.block_tokens / 2) * self.token_bytes

    @property
    def held(self) -> float:
        """Bytes of KV that its decoding requests hold on average."""
        return self.decoding * self.request_bytes

    @property
    def decode_use(self) -> float:
        """What its requests ask of what it decodes with as many as it has KV for."""
        return self.ask.rate * self.output * float(self.waits[self.most - 1]) / self.most

    @property
    def wait_tail(self) -> float:
        """The wait that all but `TAIL` of tokens have."""
        passed = np.cumsum(self.tokens_per_s)
        if not passed[-1]:
            return float(self.waits[0])
        at = int(np.searchsorted(passed, (1 - TAIL) * passed[-1]))
        return float(self.waits[min(at, MOST_BATCH - 1)])

    def take(self, waits: Floats) -> None:
        """Takes over waits by batch: how often each batch is met follows from them. `busy` goes
        halfway there."""
        self.waits = waits
        self._count()
        met = self.chances[1:]
        self.busy_step = float(met @ self.steps / met.sum() if met.sum() else self.steps[0])
        self.busy = (self.busy + 1 - float(self.chances[0])) / 2

    def limit(self, most: int) -> None:
        """No more than so many requests decode; waits stay as they are."""
        self.most = most
        self._count()

    def for_kv(self) -> tuple[float, float]:
        """(mean wait for KV, the chance that there is any), as of a queue with so many servers: who
        finds none free waits until one is, in turn.
        """
        use = self.decode_use
        full = float(self.chances[self.most])
        delayed = full / (1 - use * (1 - full))
        until_free = self.output * float(self.waits[self.most - 1]) / self.most
        return delayed * until_free / (1 - use), delayed

    def _count(self) -> None:
        """Each token keeps a request there for a wait."""
        tokens = self.ask.rate * self.output
        if tokens <= 0:
            self.chances = np.concatenate(([1.0], np.zeros_like(self.waits)))
            return
        ratios = np.log(tokens * self.waits / BATCH)
        ratios[self.most :] = -inf
        logs = np.concatenate(([0.0], np.cumsum(ratios)))
        weights = np.exp(logs - logs.max())
        self.chances = weights / weights.sum()


def turn_member(
    ask: Ask, kind: GroupKind, tables: Mapping[str, StepTable], lengths: Lengths | None
) -> TurnMember:
    """The member before anything is known of its unit; of `lengths` unknown, the demand's means."""
    llm, share = ask.llm, ask.share or Share(prefill=Percent(50), decode=Percent(50))
    profile = profile_of(llm, kind.gpu, tables)
    lengths = lengths or ((llm.demand.prompt_tokens, llm.demand.output_tokens),)
    # A long output is there for longer, so it weighs more in the contexts that steps see.
    decoded = sum(o for _, o in lengths)
    context = sum(o * (p + o / 2) for p, o in lengths) / decoded
    curve = profile.decode_curve(tensor=kind.gpus, percent=share.decode, context=context)
    steps = np.array([curve.at(n) for n in BATCH])
    return TurnMember(
        ask=ask, share=share, token_bytes=kv_per_token(llm), block_tokens=_block_tokens(llm),
        context=context, output=sum(max(0.0, o - 1) for _, o in lengths) / len(lengths),
        prefills=tuple(profile.prefill_s(tensor=kind.gpus, percent=share.prefill, batch=1,
                                         tokens=p) for p, _ in lengths),
        steps=steps, busy_step=float(steps[0]),
    )  # fmt: skip


def _block_tokens(llm: Llm) -> int:
    """Tokens of a KV block of the member."""
    shape = llm.geometry
    if shape is None:
        return 1
    return kv_geometry(layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
                       dtype=shape.dtype, unit_bytes=UNIT_BYTES).block_tokens  # fmt: skip
