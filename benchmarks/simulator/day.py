"""Demand that moves: a day's curve with popularity swapping at noon, three ways to plan for it.

    python benchmarks/simulator/day.py [--alpha 2.1 --scale 0.1 --day 86400]

Static: one plan for the day's highest rates as they are before noon. Re-planning: begins with the
plan for the first moment, measures arrivals and plans again, looking every five seconds as the
operator does. Oracle: the same with the true rates, every minute. Hot and cold LLMs of one size
trade their rates at noon.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from report import Table, progress, report
from runs import spent, window_arguments
from systems import nodes, power_law

from mux_core.llm import Llm
from mux_core.placement import Placement
from mux_core.planners.strategies import make_estimator, make_planner
from mux_core.planning import PlacementProblem, best_plan
from mux_core.simulator.latency_base import latency_bases
from mux_core.simulator.measures import attainment, goodput, offered, tally, worst_ratio
from mux_core.simulator.policies import policy_factory
from mux_core.simulator.record import RunRecord
from mux_core.simulator.replanning import SAMPLE_S, Replan
from mux_core.simulator.run import Settings, simulate
from mux_core.simulator.workloads import (
    Stream,
    arrivals,
    day_curve,
    popularity_pairs,
    streams_of,
    swapped,
)
from mux_core.units import ModelName

BINS = 144
"""Parts of the day in which waits are averaged: ten minutes of 24 hours."""
WAYS = ("static", "re-planning", "oracle")
ORACLE_S = 60.0
"""Seconds between plans of the oracle: its rates change all the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """The demand of one day."""

    llms: tuple[Llm, ...]
    low: float
    seconds: float

    @property
    def streams(self) -> tuple[Stream, ...]:
        curve = day_curve(self.low, self.seconds)
        pairs = popularity_pairs(self.llms)
        return swapped(streams_of(self.llms, curve=curve), pairs, self.seconds / 2)

    def rates(self, now: float) -> Mapping[ModelName, float]:
        """The true rates of the moment."""
        return {stream.model: stream.rate * stream.curve.at(now) for stream in self.streams}

    def problem(self, rates: Mapping[ModelName, float]) -> PlacementProblem:
        llms = tuple(
            replace(one, demand=replace(one.demand, rate=rates[one.name])) for one in self.llms
        )
        return PlacementProblem(now=0.0, nodes=nodes(), llms=llms)


def run_day(day: Day, way: str, seed: int) -> RunRecord:
    planner = make_planner("default", estimator=make_estimator("default"))
    streams = day.streams
    highest = {one.name: one.demand.rate for one in day.llms}
    problem = day.problem(highest if way == "static" else day.rates(0.0))
    placement: Placement = best_plan(planner, problem).proposed
    replan = Replan(
        plan=lambda asked: best_plan(planner, asked),
        every_s=ORACLE_S if way == "oracle" else SAMPLE_S,
        known=day.rates if way == "oracle" else None,
    )
    settings = Settings(
        seconds=day.seconds,
        warmup=0.0,
        sample_s=60.0,
        spans_s=0.0,
        replan=None if way == "static" else replan,
    )
    requests = arrivals(streams, seed=seed, until=day.seconds)
    factory = policy_factory("adbs", {})
    return spent.timed(lambda: simulate(problem, placement, requests, factory, settings))


def longest_wait(record: RunRecord, seconds: float) -> tuple[float, str]:
    """The largest mean TTFT of any LLM in any ten minutes of the day, and whose it was."""
    worst = 0.0, ""
    for name, log in record.requests.items():
        waits = np.where(np.isnan(log.first), record.until, log.first) - log.arrived
        bins = (log.arrived / seconds * BINS).astype(int)
        for number in np.unique(bins):
            worst = max(worst, (float(waits[bins == number].mean()), str(name)))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    window_arguments(parser, seeds=1)
    parser.add_argument("--alpha", type=float, default=2.1)
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--low", type=float, default=0.3, help="lowest rate, part of the highest")
    parser.add_argument("--day", type=float, default=86_400.0, help="seconds of the day")
    args = parser.parse_args()
    day = Day(llms=power_law(args.alpha, args.scale), low=args.low, seconds=args.day)
    table = Table(
        title=f"A day of {args.day / 3600:.3g} h, alpha {args.alpha}, scale {args.scale}, rates "
        f"from {args.low:.0%} at midnight to 100 % at noon, when popularity swaps",
        columns=("plan", "offered", "goodput", "worst ratio", "SLO 8", "mean GPUs", "moves",
                 "longest ten-minute TTFT s"),
    )  # fmt: skip
    bases = latency_bases(day.llms, nodes(), {})
    for way in WAYS:
        progress(f"day: {way}")
        records = [run_day(day, way, seed) for seed in range(1, args.seeds + 1)]
        runs = [tally(record, seconds=day.seconds, bases=bases) for record in records]
        wait, whose = max(longest_wait(record, day.seconds) for record in records)
        table.add(
            way, sum(offered(runs, m) for m in runs[0].models), goodput(runs), worst_ratio(runs),
            attainment(runs, 8), float(np.mean([record.gpus_used for record in records])),
            sum(len(move.steps) for record in records for move in record.moves) / len(records),
            f"{wait:.2f} ({whose})",
        )  # fmt: skip
    table.notes.append("Moves are steps of plans taken up: starts, stops and changed shares.")
    report(args, table)


if __name__ == "__main__":
    main()
