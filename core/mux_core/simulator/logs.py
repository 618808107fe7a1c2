"""From what units and the clock's keeper saw to the tables of the record."""

from dataclasses import dataclass, field
from math import nan

import numpy as np

from mux_core.engine import Phase
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.member import SimMember
from mux_core.simulator.record import MemberLog, RequestLog
from mux_core.simulator.unit import SimUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class Little:
    """Little's law over a window: requests inside on average, and arrivals/s times seconds of stay.

    `inside` is counted as requests come and go, `spent` (seconds of all requests in the window, per
    second) from their lines in the log. So the law holds at any load, not in a steady state alone.
    """

    inside: float
    rate: float
    spent: float

    @property
    def stay(self) -> float:
        """Seconds in the window per arrival in it."""
        return self.spent / self.rate if self.rate > 0 else 0.0


@dataclass(slots=True)
class LlmLog:
    """All requests of one LLM, and how many were in the system over the window."""

    arrived: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    turned_away: dict[int, float] = field(default_factory=dict)
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    served: int = 0
    _inside: int = 0
    _area: float = 0.0
    _since: float = 0.0

    def arrive(self, arrival: Arrival, now: float) -> int:
        """Opens a line; its number."""
        self._count(+1, now)
        self.arrived.append(arrival.at)
        self.first.append(nan)
        self.finished.append(nan)
        self.prompt.append(arrival.prompt)
        self.output.append(arrival.output)
        return len(self.arrived) - 1

    def finish(self, index: int, now: float) -> None:
        self.finished[index] = now
        self.served += 1
        self._count(-1, now)

    def reject(self, index: int, now: float) -> None:
        self.turned_away[index] = now
        self._count(-1, now)

    @property
    def inside(self) -> int:
        """Requests in the system now."""
        return self._inside

    def begin_window(self, now: float) -> None:
        self._area, self._since = 0.0, now

    def _count(self, step: int, now: float) -> None:
        self._area += self._inside * (now - self._since)
        self._since = now
        self._inside += step

    def table(self) -> RequestLog:
        return RequestLog(
            arrived=np.array(self.arrived, dtype=float), first=np.array(self.first, dtype=float),
            finished=np.array(self.finished, dtype=float),
            prompt=np.array(self.prompt, dtype=float), output=np.array(self.output, dtype=float),
            rejected=len(self.turned_away),
        )  # fmt: skip

    def little(self, until: float, window: float) -> "Little":
        """The law's three figures over the window that ends now."""
        self._count(0, until)
        table = self.table()
        left = np.where(np.isnan(table.finished), until, table.finished)
        for index, at in self.turned_away.items():
            left[index] = at
        begin = until - window
        stays = np.clip(left, begin, until) - np.clip(table.arrived, begin, until)
        rate = float(np.count_nonzero(table.arrived >= begin)) / window
        return Little(inside=self._area / window, rate=rate, spent=float(stays.sum()) / window)


def member_log(unit: SimUnit, member: SimMember, *, window: float) -> MemberLog:
    """A member's figures; parts of the unit's KV, means over the window."""
    meter = member.meter
    whole = unit.total / member.layout.row_units
    decodes = meter.steps[Phase.DECODE]
    return MemberLog(
        unit=unit.plan.id, model=member.model,
        kv_mean=meter.kv_area / window / whole if window > 0 else 0.0,
        kv_max=meter.kv_most / whole,
        kv_samples=np.array(meter.kv_samples, dtype=float).reshape(-1, 2),
        batch_samples=np.array(meter.batch_samples, dtype=float).reshape(-1, 2),
        prefill_steps=meter.steps[Phase.PREFILL], decode_steps=decodes,
        batch_mean=meter.decoded / decodes if decodes else 0.0,
        busy=meter.busy_s / window if window > 0 else 0.0, preempted=meter.preempted,
    )  # fmt: skip
