"""What a search asks of an estimator: does this unit carry these rates, and with which shares?"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mux_core.llm import Llm
from mux_core.placement import Share
from mux_core.planning import PlanReason
from mux_core.units import Bytes


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class GroupKind:
    """A kind of GPU group: `gpus` GPUs of one type, `memory` bytes each."""

    gpus: int
    gpu: str
    memory: Bytes

    def __hash__(self) -> int:
        """Searches look kinds up all the time; few differ in more than their size."""
        return self.gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One LLM in a unit and the rate sent to it there; `share` None lets the estimator choose."""

    llm: Llm
    rate: float
    share: Share | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberOutcome:
    """What one member gets; rates in requests/s, times in s. `kv`: its part of the unit's, over
    all GPUs; `held`: of that, what its requests hold on average.
    """

    served: float
    share: Share
    kv: Bytes
    held: Bytes | None = None
    utilisation: float = 0.0
    ttft_mean_s: float | None = None
    ttft_p99_s: float | None = None
    tpot_mean_s: float | None = None
    tpot_p99_s: float | None = None
    attainment: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitOutcome:
    """What a unit is predicted to do; `refused` says why it cannot carry what was asked."""

    members: tuple[MemberOutcome, ...]
    refused: PlanReason | None = None
    message: str = ""

    @property
    def fits(self) -> bool:
        return self.refused is None


class UnitForecast(Protocol):
    """Predicts one unit. Remembers answers, which never changes them."""

    def outcome(self, kind: GroupKind, asks: Sequence[Ask]) -> UnitOutcome:
        """Prediction for `asks` together on one group, shares as asked or chosen here."""
        ...


class UnitEstimator(UnitForecast, Protocol):
    """What a search needs besides."""

    @property
    def name(self) -> str: ...

    def sizes(self, llm: Llm, kinds: Sequence[GroupKind]) -> tuple[GroupKind, ...]:
        """The kinds of group that can hold one replica of `llm`, smallest first."""
        ...

    def cost_key(self, llm: Llm) -> Hashable:
        """LLMs of equal key and rate are interchangeable in `outcome`."""
        ...

    def footprint(self, llm: Llm, kind: GroupKind) -> float:
        """Share of the group's memory one replica takes before any KV; above 1 it cannot fit."""
        ...

    def carries(self, kind: GroupKind, asks: Sequence[Ask]) -> bool:
        """Whether `outcome` fits; a search asks this far more often."""
        ...
