"""What pictures of simulated runs show beyond their figures: one unit closely, and other loads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mux_cli.simulate_arguments import Traffic, Window
from mux_cli.simulate_runs import Job, Scenario, run_all
from mux_core.errors import SpecError
from mux_core.placement import GpuGroup, Placement, Unit
from mux_core.simulator import measures
from mux_core.simulator.latency_base import LatencyBase
from mux_core.simulator.measures import tally
from mux_core.simulator.record import MemberLog, RunRecord, Span
from mux_core.units import ModelName, UnitId

SWEEP = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Loads at which goodput is drawn, as factors on the rates simulated."""
SWEEP_S = 120.0
"""Window of each of them at most: one seed, enough for a curve and no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitView:
    """One unit during the first run: who was in it, what ran in its first seconds."""

    unit: UnitId
    group: GpuGroup
    members: tuple[MemberLog, ...]
    spans: tuple[Span, ...]


def shown_unit(placement: Placement, wanted: str | None) -> Unit | None:
    """The unit of that id, else the one that most demand is sent to, shared ones first."""
    units = [unit for unit in placement.units if unit.members]
    if wanted is not None:
        units = [unit for unit in units if unit.id == wanted]
        if not units:
            raise SpecError(f"--unit {wanted}: not in the plan; it has "
                            f"{', '.join(unit.id for unit in placement.units)}")  # fmt: skip

    def asked(unit: Unit) -> tuple[bool, float]:
        return len(unit.members) > 1, sum(m.rate for m in unit.members) / unit.group.size

    return max(units, key=asked, default=None)


def unit_view(unit: Unit, record: RunRecord) -> UnitView:
    """What a run saw of a unit."""
    return UnitView(
        unit=unit.id, group=unit.group,
        members=tuple(m for m in record.members if m.unit == unit.id),
        spans=tuple(span for span in record.spans if span.unit == unit.id),
    )  # fmt: skip


def load_sweep(
    scenario: Scenario,
    bases: dict[ModelName, LatencyBase],
    factors: Sequence[float],
    *,
    at_once: int | None,
) -> list[dict[str, Any]]:
    """Goodput and worst ratio of one short run per factor; empty for a trace."""
    if not scenario.traffic.seeded:
        return []
    before = scenario.window
    window = Window(warmup=before.warmup, seconds=min(SWEEP_S, before.seconds), tail=0.0)
    loaded = [
        replace(scenario, label=f"load x {f:g}", window=window, traffic=_times(scenario.traffic, f))
        for f in factors
    ]
    records = run_all([Job(one, 1) for one in loaded], at_once=at_once)
    points = []
    for factor, record in zip(factors, records, strict=True):
        if record is None or record.until < window.until:
            continue
        runs = [tally(record, seconds=window.seconds, bases=bases)]
        points.append(
            {
                "factor": factor,
                "offered": sum(measures.offered(runs, m) for m in measures.model_names(runs)),
                "goodput": measures.goodput(runs),
                "worst_ratio": measures.worst_ratio(runs),
            }
        )
    return points


def _times(traffic: Traffic, factor: float) -> Traffic:
    return replace(
        traffic, streams=tuple(replace(s, rate=s.rate * factor) for s in traffic.streams)
    )
