"""Planning again during a run: the operator's rates, a planner, and what carrying a plan out takes.

Arrivals are counted at the gateway and become rates as the operator makes them: `mux_core.rates`
for what is measured, `mux_core.problem.planned_rate` for what is planned with, so that chance and
short dips plan nothing. `known` puts the truth in their place, for a comparison with an oracle.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mux_core.llm import Llm
from mux_core.placement import Placement
from mux_core.planning import PlacementProblem, Plan
from mux_core.problem import planned_rate
from mux_core.rates import RateState, Sample, observed, rates
from mux_core.units import ModelName

SAMPLE_S = 5.0
"""Seconds between two looks at the gateway's counters."""
_GATEWAY = "gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How long an engine takes to start: `start_s` for processes, contexts and warm-up, then its
    weights at `bytes_per_s` on each GPU. Both are assumptions: weights from a local NVMe disk.
    """

    start_s: float = 10.0
    bytes_per_s: float = 2e9

    def seconds(self, llm: Llm, gpus: int) -> float:
        return self.start_s + llm.weight_bytes / gpus / self.bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """When to plan again, and how. `plan` answers a problem whose `current` is what runs.

    `known`: the rates at a time, by LLM, where they need not be measured.
    """

    plan: Callable[[PlacementProblem], Plan]
    every_s: float = 60.0
    loading: Loading = Loading()
    known: Callable[[float], Mapping[ModelName, float]] | None = None


class Demands:
    """Rates of a run as its operator sees them."""

    def __init__(self, problem: PlacementProblem, replan: Replan) -> None:
        self._problem = problem
        self._replan = replan
        self._state = RateState()
        self._asked: PlacementProblem | None = None

    def look(
        self, now: float, arrived: Mapping[ModelName, int], waiting: Mapping[ModelName, int]
    ) -> None:
        """Reads the counters and the lengths of queues."""
        sample = Sample(source=_GATEWAY, start_id="run", at=now, arrivals=arrived, waiting=waiting)
        self._state = observed(self._state, [sample])

    def problem(self, now: float, current: Placement) -> PlacementProblem | None:
        """What a planner is asked now; None: the same as it was asked last."""
        before: dict[ModelName, float] = {}
        for _, member in current.members():
            before[member.model] = before.get(member.model, 0.0) + member.rate
        wanted = self._rates(now, before)
        llms = tuple(
            replace(llm, demand=replace(llm.demand, rate=wanted[llm.name]))
            for llm in self._problem.llms
        )
        asked = replace(self._problem, llms=llms, current=current)
        if asked == self._asked:
            return None
        self._asked = asked
        return replace(asked, now=now, unit_prefix=f"t{now:.0f}-u")

    def _rates(self, now: float, before: Mapping[ModelName, float]) -> Mapping[ModelName, float]:
        names = [llm.name for llm in self._problem.llms]
        if self._replan.known is not None:
            known = self._replan.known(now)
            return {name: known[name] for name in names}
        measured = rates(self._state, now=now, live=frozenset({_GATEWAY}))
        return {name: planned_rate(measured.get(name), 0.0, before.get(name, 0.0))
                for name in names}  # fmt: skip
