"""Our own policy in the simulator: the round and the quotas the product ships, nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mux_core.adbs import Limits, UnitLoad, adbs_round
from mux_core.quota import QuotaClaim, adapt
from mux_core.simulator.policy import Decision, Happening, Queue, UnitSetting

CAPS: Final = Limits(sm_percent=200, max_prefills=1)
"""On a GPU percents are caps: one prefill on all SMs overlaps with decodes that fill them as well.
Two prefills would both be short of arithmetic; they go one after the other, as the estimator says.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdbsPolicy:
    """ADBS; holds no state: what one round leaves for the next travels in the load."""

    limits: Limits = CAPS
    name: str = "adbs"

    def decide(self, load: UnitLoad, queues: Sequence[Queue], now: float) -> Decision:
        return Decision(adbs_round(load, self.limits))

    def quotas(self, claims: Sequence[QuotaClaim], total: int, now: float, *,
               urgent: str | None = None) -> Mapping[str, int]:  # fmt: skip
        return adapt(claims, total, urgent=urgent)

    def happened(self, what: Happening, model: str, now: float) -> None:
        pass


def adbs(setting: UnitSetting) -> AdbsPolicy:
    """ADBS as shipped, percents as caps on GPUs."""
    return AdbsPolicy(limits=Limits() if setting.kind.gpu == "cpu" else CAPS)
