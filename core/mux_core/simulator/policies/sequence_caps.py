"""How the released scheduler shares KV: token blocks by rate, turned into a cap on sequences.

Shares start at N * r / sum(r * g) token blocks, N the head blocks of the unit, g those of one
token block. Every eight seconds members whose decode batches stay below their cap give some of it
to members that fill theirs and have a queue.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mux_core.adbs import MemberLoad, UnitLoad
from mux_core.simulator.policy import UnitSetting

ADAPT_EVERY_S: Final = 8.0
BLOCK_TOKENS: Final = 32
"""Tokens of its token block."""
MEAN_TOKENS: Final = 416.0
"""Sequence length where the workload states none."""
STEPS_SEEN: Final = 500
FIRST_BATCH: Final = 30.0
"""Mean decode batch of a member that has not decoded yet."""
FULL, AIM, LONG_QUEUE, GROWTH = 0.9, 0.95, 1.1, 0.1


@dataclass(slots=True, kw_only=True)
class Share:
    """One member's share. `head_blocks`: what it owns; `per_sequence`: what one sequence takes."""

    head_blocks: float
    per_sequence: float
    batches: deque[int] = field(default_factory=lambda: deque(maxlen=STEPS_SEEN))

    @property
    def cap(self) -> int:
        return max(1, int(self.head_blocks // self.per_sequence))

    @property
    def mean_batch(self) -> float:
        return sum(self.batches) / len(self.batches) if self.batches else FIRST_BATCH


@dataclass(slots=True, kw_only=True)
class SequenceCaps:
    """Caps by model of one unit. `adapts`: shares move every eight seconds."""

    shares: Mapping[str, Share]
    adapts: bool = True
    _adapt_at: float | None = None
    _pooled: float = 0.0

    def cap(self, model: str) -> int:
        return self.shares[model].cap

    def note_step(self, model: str, batch: int) -> None:
        self.shares[model].batches.append(batch)

    def refresh(self, load: UnitLoad, now: float) -> None:
        """Adapts the shares when it is time."""
        if self._adapt_at is None:
            self._adapt_at = now + ADAPT_EVERY_S
        elif self.adapts and now >= self._adapt_at:
            self._adapt_at = now + ADAPT_EVERY_S
            self._adapt({m.model: m for m in load.members})

    def _adapt(self, loads: Mapping[str, MemberLoad]) -> None:
        grown: dict[str, float] = {}
        spared: dict[str, float] = {}
        for model, share in self.shares.items():
            used = share.mean_batch / share.cap
            backlog = loads[model].waiting
            if used < FULL:
                spared[model] = int(max(1, (AIM - used) * share.cap)) * share.per_sequence
            elif backlog and backlog + loads[model].running >= LONG_QUEUE * share.mean_batch:
                more = min(max(1, int(GROWTH * share.mean_batch)), backlog)
                grown[model] = more * share.per_sequence
        moved = min(sum(grown.values()), sum(spared.values()))
        self._move(spared, -moved)
        self._move(grown, moved)
        self._give_fractions(loads)

    def _move(self, parts: Mapping[str, float], moved: float) -> None:
        """Divides `moved` head blocks in proportion to `parts`."""
        whole = sum(parts.values())
        for model, part in parts.items():
            self.shares[model].head_blocks += moved * part / whole

    def _give_fractions(self, loads: Mapping[str, MemberLoad]) -> None:
        """What makes up no whole sequence is pooled for the longest queues."""
        for share in self.shares.values():
            whole = share.cap * share.per_sequence
            self._pooled += max(0.0, share.head_blocks - whole)
            share.head_blocks = min(share.head_blocks, whole)
        for model in sorted(self.shares, key=lambda m: (-loads[m].waiting, m)):
            share = self.shares[model]
            if loads[model].waiting and self._pooled >= share.per_sequence:
                share.head_blocks += share.per_sequence
                self._pooled -= share.per_sequence


def first_shares(setting: UnitSetting, *, equal: bool = False) -> Mapping[str, Share]:
    """Token blocks by rate; with `equal` the same number for all."""
    members = setting.unit.members
    weights = [1.0 if equal else max(m.rate, 1e-9) for m in members]
    # A row of 64 tokens is two of its token blocks.
    groups = [
        setting.row_units[m.model] * BLOCK_TOKENS / setting.block_tokens[m.model] for m in members
    ]
    whole = sum(weight * group for weight, group in zip(weights, groups, strict=True))
    shares: dict[str, Share] = {}
    for member, weight, group in zip(members, weights, groups, strict=True):
        demand = setting.llms[member.model].demand
        mean = demand.prompt_tokens + demand.output_tokens or MEAN_TOKENS
        shares[member.model] = Share(
            head_blocks=int(setting.kv_units * weight / whole) * group,
            per_sequence=max(1.0, mean // BLOCK_TOKENS) * group,
        )
    return shares
