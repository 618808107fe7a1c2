"""The worst-off LLM of ours on the GPUs of spatial-replicas: how much it is served, how it waits.

    python benchmarks/simulator/fairness.py [--cases 2.1/0.5,chat500] [--seconds 600 --seeds 5]

The optimum is the largest part phi of every rate that the estimator says those units carry, found
by bisection. Isolated is an LLM with the same arrivals alone on the units it has, same shares.
"""

import argparse
from dataclasses import replace
from math import sqrt

from report import Table, progress, report
from runs import Measured, Traffic, Window, measure, window_arguments, window_of
from systems import ATTAINMENT, System, make_system, nodes, published

from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.unit import Ask
from mux_core.placement import GpuGroup, Placement, Unit
from mux_core.planners.assembly import kind_of
from mux_core.simulator.measures import latency, ratio
from mux_core.units import ModelName, UnitId

CLOSE = 0.005
LEAST_RATIO, MOST_WAIT = 0.9, 2.0


def carries(system: System, estimator: QueueingUnits, phi: float) -> bool:
    """Whether every unit carries that part of the rates sent to it."""
    llms = {llm.name: llm for llm in system.problem.llms}
    shares: dict[ModelName, float] = {}
    for _, member in system.placement.members():
        shares[member.model] = shares.get(member.model, 0.0) + max(member.rate, 1e-9)
    for unit in system.placement.units:
        kind = kind_of(system.problem, unit.group)
        assert kind is not None
        asks = [
            Ask(
                llm=llms[m.model],
                rate=phi * llms[m.model].demand.rate * max(m.rate, 1e-9) / shares[m.model],
            )
            for m in unit.members
        ]
        if not estimator.outcome(kind, asks).fits:
            return False
    return True


def max_min_optimum(system: System) -> float:
    """The largest phi, at most 1."""
    estimator = QueueingUnits(enforce_slo=False)
    low, high = 0.0, 1.0
    if carries(system, estimator, high):
        return high
    while high - low > CLOSE:
        middle = (low + high) / 2
        low, high = (middle, high) if carries(system, estimator, middle) else (low, middle)
    return low


def isolated(system: System) -> System:
    """Every member on a unit of its own, as many GPUs and the same share as it has now."""
    cluster = nodes(sum(len(unit.members) for unit in system.placement.units))
    units = []
    for index, (unit, member) in enumerate(system.placement.members()):
        group = GpuGroup(node=cluster[index].name, gpus=tuple(range(unit.group.size)))
        units.append(Unit(id=UnitId(f"alone-{index:03d}"), group=group, members=(member,)))
    return replace(
        system,
        name="isolated",
        problem=replace(system.problem, nodes=cluster),
        placement=Placement(units=tuple(units)),
    )


def waits(found: Measured) -> dict[ModelName, float]:
    """Mean TTFT of every LLM that had a request."""
    spreads = {model: latency(found.runs, model, "ttft") for model in found.runs[0].models}
    return {model: spread.mean for model, spread in spreads.items() if spread is not None}


def chance(found: Measured, model: ModelName) -> float:
    """Two standard deviations of a ratio by who is under way at the window's two edges."""
    tallies = [run.models[model] for run in found.runs]
    under_way = sum(2 * max(1.0, t.present) for t in tallies)
    return 2 * sqrt(under_way) / max(1, sum(t.offered for t in tallies))


def fairness_table() -> Table:
    table = Table(
        title="The worst-off LLM of ours on the GPUs of spatial-replicas",
        columns=("case", "GPUs", "optimum", "worst served / offered", "of the optimum",
                 "largest mean TTFT / isolated", "bar"),
    )  # fmt: skip
    table.notes.append("Bar: at least 0.9 of the optimum; where that is 1, mean TTFT at most twice "
                       "the isolated one. ±: two standard deviations of what the window's edges "
                       "add to served or take; shown is the lowest upper end.")  # fmt: skip
    return table


def judge(table: Table, case: str, found: Measured, traffic: Traffic, window: Window) -> None:
    """Adds the row of one case, with ours as measured."""
    system = found.system
    optimum = max_min_optimum(system)
    alone = waits(measure(isolated(system), traffic, window))
    slowed, slowest = max((wait / alone[model], model) for model, wait in waits(found).items())
    _, starved = min((ratio(found.runs, m) + chance(found, m), m) for m in alone)
    worst, noise = ratio(found.runs, starved), chance(found, starved)
    held = worst + noise >= LEAST_RATIO * optimum and (optimum < 1 or slowed <= MOST_WAIT)
    verdict = "held" if held else "missed"
    served = f"{worst:.3f} ± {noise:.3f} ({starved})"
    table.add(case, system.placement.gpus_used, optimum, served,
              worst / optimum, f"{slowed:.2f} ({slowest})", verdict)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    window_arguments(parser)
    parser.add_argument("--cases", default="", help="of the published ones, by comma; all")
    args = parser.parse_args()
    known = published()
    chosen = args.cases.split(",") if args.cases else list(known)
    table, window = fairness_table(), window_of(args)
    for case in chosen:
        progress(f"fairness: {case}")
        llms = known[case]
        gpus = make_system("spatial-replicas", llms).placement.gpus_used
        ours, traffic = make_system(ATTAINMENT, llms, gpus=gpus), Traffic(llms=llms)
        judge(table, case, measure(ours, traffic, window), traffic, window)
    report(args, table)


if __name__ == "__main__":
    main()
