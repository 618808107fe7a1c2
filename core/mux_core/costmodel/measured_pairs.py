"""Interference out of measured pairs: how much longer a step takes beside each kind of other step.

On a CPU two steps on halves of the cores share caches and memory, nothing else; the factors are
means over the pairs of a profile, so they serve pairs that were never measured as well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mux_core.costmodel.interference import Interference
from mux_core.costmodel.profile_set import PairTimes
from mux_core.engine import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class PairInterference(Interference):
    """Factors at least 1. What a decode costs another is measured, not derived from the bus."""

    decode_by_decode: float = 1.0
    prefill_by_prefill: float = 1.0

    def prefill_factor(self, *, decoding: bool, prefilling: bool = False) -> float:
        if prefilling:
            return self.prefill_by_prefill
        return 1 + self.prefill_by_decode * decoding

    def bus_stretch(self, asked: float) -> float:
        return self.decode_by_decode


def pair_interference(pairs: Sequence[PairTimes]) -> PairInterference:
    """The mean factor of each kind of pair; 1 where none was measured."""
    return PairInterference(
        decode_by_prefill=_mean(pairs, Phase.DECODE, Phase.PREFILL) - 1,
        prefill_by_decode=_mean(pairs, Phase.PREFILL, Phase.DECODE) - 1,
        decode_by_decode=_mean(pairs, Phase.DECODE, Phase.DECODE),
        prefill_by_prefill=_mean(pairs, Phase.PREFILL, Phase.PREFILL),
    )


def _mean(pairs: Iterable[PairTimes], slowed: Phase, by: Phase) -> float:
    found = [
        max(1.0, pair.slowdowns[side])
        for pair in pairs
        for side in (0, 1)
        if pair.sides[side].phase is slowed and pair.sides[1 - side].phase is by
    ]
    return sum(found) / len(found) if found else 1.0
