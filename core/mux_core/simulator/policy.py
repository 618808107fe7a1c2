"""What a unit's scheduling policy is asked and answers, in the simulator.

Our own policy is `mux_core.adbs.adbs_round` with `mux_core.quota.adapt`, unchanged. The others
replay what MuxServe released (arXiv 2404.02015, section 3.3; the design of their loop is told in
`policies`), so that both run on one engine and one clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mux_core.adbs import Limits, Round, UnitLoad
from mux_core.estimator.unit import GroupKind
from mux_core.llm import Llm
from mux_core.placement import Unit
from mux_core.quota import QuotaClaim
from mux_core.units import ModelName


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSetting:
    """The unit a policy is made for.

    KV is counted in head units over all GPUs of the unit: `kv_units` in all, `row_units` by model
    in one row, which holds `block_tokens` tokens.
    """

    unit: Unit
    kind: GroupKind
    llms: Mapping[ModelName, Llm]
    kv_units: int
    row_units: Mapping[ModelName, int]
    block_tokens: Mapping[ModelName, int]


@dataclass(frozen=True, slots=True)
class Queue:
    """What a policy may look at beyond `MemberLoad`; `oldest`: arrival of the first waiting one.

    `prompt_tokens`, `output_tokens`: mean lengths stated for the LLM. `rate`: planned, requests/s.
    """

    oldest: float | None
    rate: float
    prompt_tokens: float
    output_tokens: float


class Happening(StrEnum):
    """What a unit tells its policy besides asking it for rounds."""

    FINISHED = "finished"
    PREFILLED = "prefilled"
    PREEMPTED = "preempted"


@dataclass(frozen=True, slots=True)
class Decision:
    """A round, and when the policy wants to be asked again although nothing happened.

    `again_at` replaces what earlier answers wished. `keeps_output`: what a request had generated
    survives its preemption, as in the product; else it starts from its prompt alone.
    """

    round: Round
    again_at: float | None = None
    keeps_output: bool = True


class UnitPolicy(Protocol):
    """One unit's scheduler; may hold state. Every answer is a function of what it was told."""

    @property
    def name(self) -> str: ...

    @property
    def limits(self) -> Limits:
        """What the unit's batches are chosen under."""
        ...

    def decide(self, load: UnitLoad, queues: Sequence[Queue], now: float) -> Decision:
        """One round; `queues` in the order of `load.members`."""
        ...

    def quotas(self, claims: Sequence[QuotaClaim], total: int, now: float, *,
               urgent: str | None = None) -> Mapping[str, int]:  # fmt: skip
        """Units each member may hold; asked at the start, and again as the product asks.

        `urgent`: who has waited longest for units, once that is too long.
        """
        ...

    def happened(self, what: Happening, model: str, now: float) -> None:
        """A request of `model` finished, was prefilled or lost its rows."""
        ...


PolicyFactory = Callable[[UnitSetting], UnitPolicy]
"""Makes the policy of one unit; called once per unit and plan."""
