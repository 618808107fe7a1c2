"""One member of a unit whose shares are turns: its own steps, and how many requests it decodes.

The requests that decode share the member's steps equally, so their number is a birth-death process
that knows of output lengths nothing but the mean. Who finds no KV, or no seat in the batch, waits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_banded

from mux_core.adbs import Limits
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
MOST_THERE = 4 * MOST_BATCH
"""Requests of a member that decode or wait to, at most; more are turned away."""
MATES = 4
"""What a prompt adds to a prefill is the mean over so many more."""
TAIL = 0.01

Floats = NDArray[np.float64]
Lengths = Sequence[tuple[float, float]]
"""Equally likely (prompt, output) tokens of a model's requests."""

BATCH: Floats = np.arange(1.0, MOST_BATCH + 1)
THERE: Floats = np.arange(1.0, MOST_THERE + 1)


def _none() -> Floats:
    return np.zeros(0)


def _idle() -> Floats:
    there = np.zeros(MOST_THERE + 1)
    there[0] = 1.0
    return there


@dataclass(slots=True, kw_only=True)
class TurnMember:
    """A member while its unit is settled.

    `prefills`: seconds of a prefill of each length, `steps`: of a decode step by batch, both alone;
    `mate_s`: what another prompt in the same prefill adds, of `most_mates`.
    `context` and `output`: mean tokens that a step sees of a request, and that it decodes.

    The rest is what the unit makes of it. `mates`: other prompts in a prefill; `waits`: seconds
    between two tokens by batch; `there`: chances of 0, 1, 2... requests, of which as many decode as
    there is KV for (`most`); `busy`: part of the time that there are any, `busy_step` and
    `busy_batch`: its mean step and batch then.
    """

    ask: Ask
    share: Share
    token_bytes: float
    block_tokens: int
    context: float
    output: float
    prefills: tuple[float, ...]
    mate_s: float
    most_mates: float
    steps: Floats
    mates: float = 0.0
    most: int = MOST_BATCH
    busy: float = 0.0
    busy_step: float = 0.0
    busy_batch: float = 1.0
    waits: Floats = field(default_factory=_none)
    there: Floats = field(default_factory=_idle)

    @property
    def prefill_s(self) -> float:
        return sum(self.prefills) / len(self.prefills)

    @property
    def mates_s(self) -> float:
        """What others add to a prefill."""
        return self.mates * self.mate_s

    @property
    def prefills_per_s(self) -> float:
        return self.ask.rate / (1 + self.mates)

    @property
    def chances(self) -> Floats:
        """Of 0, 1, 2... requests decoding."""
        chances = np.zeros(MOST_BATCH + 1)
        chances[: self.most] = self.there[: self.most]
        chances[self.most] = self.there[self.most :].sum()
        return chances

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
        return self.busy / self.decoding if self.decoding else 1.0

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

    def gather(self, wait_s: float) -> None:
        """Prompts that come while one waits go with it. `mates` goes halfway to what follows."""
        self.mates = (self.mates + min(self.most_mates, self.ask.rate * wait_s)) / 2

    def take(self, waits: Floats, seconds: float) -> None:
        """Takes over waits by batch, for so long. What does not follow a window goes halfway to
        them, as rounds would else swing to and fro; `busy` goes halfway to what follows."""
        settles = seconds == inf and len(self.waits)
        self.waits = (self.waits + waits) / 2 if settles else waits
        self.there = self.lasting() if seconds == inf else self._later(seconds)
        self._met()
        self.busy = (self.busy + 1 - float(self.there[0])) / 2

    def average(self, moments: Sequence[tuple[Floats, Floats]]) -> None:
        """Takes over what it was like on average: `there` and `waits` of each moment."""
        self.there = np.mean([there for there, _ in moments], axis=0)
        met = self.there[1 : MOST_BATCH + 1]
        stepped = np.mean([there[1 : MOST_BATCH + 1] / waits for there, waits in moments], axis=0)
        self.waits = np.divide(met, stepped, out=self.waits.copy(), where=stepped > 0)
        self._met()
        self.busy = 1 - float(self.there[0])

    def for_kv(self) -> tuple[float, float]:
        """(mean wait for KV, the chance that there is any), by Little's law."""
        if not self._is_asked:
            return 0.0, 0.0
        full = self.there[self.most :]
        return float(full @ np.arange(len(full))) / self.ask.rate, float(full.sum())

    def lasting(self) -> Floats:
        """Chances of 0, 1, 2... requests there, at these waits for ever."""
        if not self._is_asked:
            return _idle()
        logs = np.concatenate(([0.0], np.cumsum(np.log(self.ask.rate / self._ending))))
        weights: Floats = np.exp(logs - logs.max())
        return weights / float(weights.sum())

    def _later(self, seconds: float) -> Floats:
        """Chances so long after now, at these waits; the implicit Euler method."""
        if not self._is_asked:
            return _idle()
        more = np.append(np.full(MOST_THERE, self.ask.rate), 0.0) * seconds
        fewer = np.append(0.0, self._ending) * seconds
        bands = np.stack((-fewer, 1 + more + fewer, -more))
        there: Floats = solve_banded((1, 1), bands, self.there)
        return there

    @property
    def _is_asked(self) -> bool:
        """For anything that it decodes."""
        return self.ask.rate > 0 and self.output > 0

    @property
    def _ending(self) -> Floats:
        """Requests that end per second, by how many are there: each token keeps one for a wait."""
        decoding = np.minimum(THERE, self.most)
        ending: Floats = decoding / (self.output * self.waits[decoding.astype(int) - 1])
        return ending

    def _met(self) -> None:
        """The mean of the batches that are met, and of their steps."""
        met = self.chances[1:]
        if all_met := met.sum():
            self.busy_step = float(met @ self.steps / all_met)
            self.busy_batch = float(met @ BATCH / all_met)


def turn_member(
    ask: Ask, kind: GroupKind, tables: Mapping[str, StepTable], lengths: Lengths | None
) -> TurnMember:
    """The member before anything is known of its unit; of `lengths` unknown, the demand's means."""
    llm, share = ask.llm, ask.share or Share(prefill=Percent(50), decode=Percent(50))
    profile = profile_of(llm, kind.gpu, tables)
    lengths = lengths or ((llm.demand.prompt_tokens, llm.demand.output_tokens),)
    # A long output is there for longer, so it weighs more in the contexts that steps see.
    decoded = sum(o for _, o in lengths)
    prompt = sum(p for p, _ in lengths) / len(lengths)
    context = sum(o * (p + o / 2) for p, o in lengths) / decoded
    curve = profile.decode_curve(tensor=kind.gpus, percent=share.decode, context=context)
    steps = np.array([curve.at(n) for n in BATCH])
    prefills = [profile.prefill_s(tensor=kind.gpus, percent=share.prefill, batch=batch,
                                  tokens=prompt) for batch in (1, 1 + MATES)]  # fmt: skip
    return TurnMember(
        ask=ask, share=share, token_bytes=kv_per_token(llm), block_tokens=_block_tokens(llm),
        context=context, output=sum(max(0.0, o - 1) for _, o in lengths) / len(lengths),
        prefills=tuple(profile.prefill_s(tensor=kind.gpus, percent=share.prefill, batch=1,
                                         tokens=p) for p, _ in lengths),
        mate_s=(prefills[1] - prefills[0]) / MATES,
        most_mates=max(0.0, Limits().prefill_tokens / prompt - 1),
        steps=steps, busy_step=float(steps[0]),
    )  # fmt: skip


def _block_tokens(llm: Llm) -> int:
    """Tokens of a KV block of the member."""
    shape = llm.geometry
    if shape is None:
        return 1
    return kv_geometry(layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
                       dtype=shape.dtype, unit_bytes=UNIT_BYTES).block_tokens  # fmt: skip
