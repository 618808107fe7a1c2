"""`muxserve compare`: several plans and policies under the very same requests."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mux_cli.output import output_argument, print_result
from mux_cli.plan import with_costs
from mux_cli.simulate import measure
from mux_cli.simulate_arguments import read_traffic, read_window, traffic_arguments
from mux_cli.simulate_document import Measured, run_document
from mux_cli.simulate_systems import (
    REPLANNED,
    System,
    make_system,
    may_replan,
    replanned,
    system_arguments,
)
from mux_cli.simulate_table import print_comparison
from mux_cli.workload_file import read_workload
from mux_core.errors import SpecError
from mux_core.planners.strategies import STRATEGIES
from mux_core.simulator import measures
from mux_core.simulator.intervals import paired_difference
from mux_core.simulator.measures import SCALES, RunTally
from mux_core.simulator.policies import POLICIES

EXAMPLES = """examples:
  muxserve compare --workload w.json --strategy default spatial-replicas
  muxserve compare --workload w.json --strategy muxserve-released --policy adbs adbs-released fcfs
  muxserve compare --workload w.json --pair muxserve-released/adbs-released default/adbs

Every system meets the same requests, seed by seed, so their differences vary less than they do.
The first one is what the others are compared with. Strategies and policies are crossed.
"""
Figure = Callable[[Sequence[RunTally]], float]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `muxserve compare`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    traffic_arguments(parser)
    parser.add_argument("--strategy", choices=STRATEGIES, nargs="+", action="extend", default=[],
                        help="who shares which GPUs; several")  # fmt: skip
    parser.add_argument("--policy", choices=POLICIES, nargs="+", action="extend", default=[],
                        help="who runs when inside a unit; several (adbs)")  # fmt: skip
    parser.add_argument("--pair", nargs="+", action="extend", default=[],
                        metavar="STRATEGY/POLICY",
                        help="single systems, in place of crossing or beside it")  # fmt: skip
    system_arguments(parser)
    output_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Simulates every system with every seed and prints them side by side."""
    started = time.monotonic()
    window = read_window(args)
    names = _systems(args)
    workload, _ = with_costs(args, read_workload(args.workload))
    traffic = read_traffic(args, workload, window)
    systems = [
        make_system(
            args, workload, strategy=strategy, policy=policy, traffic=traffic, window=window
        )
        for strategy, policy in names
    ]
    if may_replan(args):
        systems += _replanned(args, systems)
    found = measure(systems, workload, seeds=args.seeds, at_once=args.jobs)
    labels = [system.scenario.label for system in systems]
    document = comparison_document(dict(zip(labels, found, strict=True)))
    document["seconds"] = time.monotonic() - started
    print_result(document, args.output, print_comparison)
    return 0


def _systems(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(strategy, policy) in the order given, crossed pairs first."""
    strategies = args.strategy or ([] if args.pair else ["default"])
    found = [(s, p) for s in strategies for p in args.policy or ["adbs"]]
    for word in args.pair:
        strategy, _, policy = word.partition("/")
        if strategy not in STRATEGIES or policy not in POLICIES:
            raise SpecError(f"--pair {word}: STRATEGY/POLICY out of {', '.join(STRATEGIES)} and "
                            f"{', '.join(POLICIES)}")  # fmt: skip
        found.append((strategy, policy))
    found = list(dict.fromkeys(found))
    if len(found) < 2 and args.replan is None:
        raise SpecError(f"compare: {len(found)} system; give at least two strategies, policies or "
                        "pairs, or --replan")  # fmt: skip
    return found


def _replanned(args: argparse.Namespace, systems: Sequence[System]) -> list[System]:
    """Those that can plan again, doing so; and once more with the true rates for `--oracle`."""
    able = [s for s in systems if (s.strategy, s.scenario.policy) == REPLANNED]
    if not able:
        raise SpecError(f"--replan: none of the systems is {'/'.join(REPLANNED)}, the only one "
                        "that plans from what runs; add it")  # fmt: skip
    kinds = (False, True) if args.oracle else (False,)
    return [replanned(args, system, oracle=oracle) for system in able for oracle in kinds]


def comparison_document(found: Mapping[str, Measured]) -> dict[str, Any]:
    """The object `muxserve compare -o json` prints, but for the time it took."""
    baseline, *others = found
    seeds = min(len(measured.runs) for measured in found.values())
    return {
        "baseline": baseline,
        "seeds": seeds,
        "systems": [
            {"label": label, "result": _without_seconds(measured)}
            for label, measured in found.items()
        ],
        "differences": {
            label: _differences(found[label].runs[:seeds], found[baseline].runs[:seeds])
            for label in others
        },
    }


def _without_seconds(measured: Measured) -> dict[str, Any]:
    document = run_document(measured, seconds=0.0)
    del document["seconds"]
    return document


def _differences(ours: Sequence[RunTally], theirs: Sequence[RunTally]) -> dict[str, Any]:
    def share(scale: int, *, e2e: bool = False) -> Figure:
        return lambda runs: measures.attainment(runs, scale, e2e=e2e)

    def worst(scale: int) -> Figure:
        return lambda runs: measures.worst_attainment(runs, scale)

    def difference(figure: Figure) -> dict[str, Any]:
        found = paired_difference(figure, ours, theirs)
        open_ended = found.low is None or found.high is None
        return {"value": found.value, "interval": None if open_ended else [found.low, found.high]}

    return {
        "goodput": difference(measures.goodput),
        "worst_ratio": difference(measures.worst_ratio),
        "gpus_used": difference(measures.gpus_used),
        "slo": {str(s): difference(share(s)) for s in SCALES},
        "slo_worst": {str(s): difference(worst(s)) for s in SCALES},
        "slo_e2e": {str(s): difference(share(s, e2e=True)) for s in SCALES},
    }
