"""`muxserve simulate`: what a plan and a policy make of a workload, request by request."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mux_cli.output import output_argument, print_result
from mux_cli.plan import with_costs
from mux_cli.plan_plot import make_folder
from mux_cli.report import Told, write_report
from mux_cli.simulate_arguments import (
    Window,
    read_traffic,
    read_window,
    traffic_arguments,
)
from mux_cli.simulate_document import Measured, run_document
from mux_cli.simulate_runs import Job, Scenario, run_all
from mux_cli.simulate_systems import System, make_system, may_replan, replanned, system_arguments
from mux_cli.simulate_table import print_run
from mux_cli.simulate_views import SWEEP, load_sweep, shown_unit, unit_view
from mux_cli.workload_file import Workload, read_workload
from mux_core.errors import SpecError
from mux_core.planners.strategies import STRATEGIES
from mux_core.simulator.latency_base import latency_bases
from mux_core.simulator.measures import tally
from mux_core.simulator.policies import POLICIES
from mux_core.simulator.record import RunRecord

EXAMPLES = """examples:
  muxserve workload --power-law 2.1 --scale 0.5 --out w.json
  muxserve simulate --workload w.json                      our plan, our policy, five seeds
  muxserve simulate --workload w.json --load 1.3           the same plan under 30 % more traffic
  muxserve simulate --workload w.json --strategy muxserve-released --policy adbs-released
  muxserve plan --workload w.json -o json > plan.json && muxserve simulate --workload w.json \\
    --plan plan.json -o json
  muxserve simulate --workload w.json --report report.html one page to show around

docs/simulator.md says what is modelled and what is not.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `muxserve simulate`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    traffic_arguments(parser)
    parser.add_argument("--strategy", choices=STRATEGIES, default="default",
                        help="who shares which GPUs (default)")  # fmt: skip
    parser.add_argument("--policy", choices=POLICIES, default="adbs",
                        help="who runs when inside a unit (adbs)")  # fmt: skip
    parser.add_argument("--plan", type=Path, metavar="PLAN.json",
                        help="a plan of `muxserve plan -o json`, in place of planning")  # fmt: skip
    system_arguments(parser)
    parser.add_argument("--overload", action="store_true",
                        help="print the figures even where every queue grows")  # fmt: skip
    parser.add_argument("--check", action="store_true",
                        help="assert the books at every event, and print Little's law")  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write pictures into DIR")
    parser.add_argument("--report", type=Path, metavar="FILE.html",
                        help="write a page that explains the result, in one file")  # fmt: skip
    parser.add_argument("--unit", metavar="ID",
                        help="the unit shown closely (the fullest shared one)")  # fmt: skip
    parser.add_argument("--sweep", type=float, nargs="*", metavar="FACTOR",
                        help="loads at which goodput is drawn, beside the one simulated "
                        "(0.5 0.75 1 1.25 1.5); none: no such curve")  # fmt: skip
    output_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Simulates and prints."""
    started = time.monotonic()
    window = read_window(args)
    _check_outputs(args)
    workload, sources = with_costs(args, read_workload(args.workload))
    traffic = read_traffic(args, workload, window)
    system = make_system(
        args, workload, strategy=args.strategy, policy=args.policy, traffic=traffic,
        window=window, plan=args.plan, check=args.check,
    )  # fmt: skip
    if may_replan(args):
        system = replanned(args, system, oracle=args.oracle)
    shown = shown_unit(system.scenario.placement, args.unit)
    (measured,) = measure([system], workload, seeds=args.seeds, at_once=args.jobs)
    document = run_document(measured, seconds=time.monotonic() - started, check=args.check)
    _refuse_unsteady(document, args.overload)
    if args.plot or args.report:
        scenario = system.scenario
        document["sweep"] = _sweep(args, scenario, workload)
        view = None if shown is None else unit_view(shown, measured.records[0])
        _draw(args, Told(document=document, view=view, scenario=scenario, workload=workload,
                         sources=sources))  # fmt: skip
    print_result(document, args.output, print_run)
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """What cannot be written is better known before hours of simulation than after."""
    if args.plot:
        make_folder(args.plot)
    if args.report and not args.report.absolute().parent.is_dir():
        raise SpecError(f"--report {args.report}: its folder does not exist; make it or choose "
                        "another")  # fmt: skip
    if args.sweep and not all(factor > 0 for factor in args.sweep):
        raise SpecError(f"--sweep {' '.join(map(str, args.sweep))}: factors on the rates, above 0")


def _draw(args: argparse.Namespace, told: Told) -> None:
    """Pictures and the page."""
    if args.plot:
        from mux_cli.simulate_plot import plot_run

        plot_run(told.document, told.view, args.plot)
    if args.report:
        write_report(args, told)


def _sweep(
    args: argparse.Namespace, scenario: Scenario, workload: Workload
) -> list[dict[str, Any]]:
    factors = SWEEP if args.sweep is None else args.sweep
    bases = latency_bases(workload.llms, workload.nodes, workload.tables)
    return load_sweep(scenario, bases, factors, at_once=args.jobs)


def measure(
    systems: list[System], workload: Workload, *, seeds: int, at_once: int | None
) -> list[Measured]:
    """Runs every system with every seed; paired, since a seed means the same requests to all."""
    scenarios = [system.scenario for system in systems]
    numbers = range(1, seeds + 1) if scenarios[0].traffic.seeded else range(1, 2)
    # Seed by seed, so that an interruption leaves the systems with about as many runs each.
    jobs = [Job(scenario, seed) for seed in numbers for scenario in scenarios]
    records = run_all(jobs, at_once=at_once)
    bases = latency_bases(workload.llms, workload.nodes, workload.tables)
    found = []
    for index, system in enumerate(systems):
        window = system.scenario.window
        kept = measurable(records[index :: len(systems)], window)
        found.append(
            Measured(
                strategy=system.strategy, policy=system.scenario.policy, window=window,
                runs=tuple(tally(r, seconds=window.seconds, bases=bases) for r in kept),
                records=tuple(kept), moves=system.scenario.traffic.moves,
                notes=system.notes + _trace_notes(system.scenario),
            )
        )  # fmt: skip
    return found


def measurable(records: list[RunRecord | None], window: Window) -> list[RunRecord]:
    """Runs that came to the window; at least one, or what was interrupted ends here."""
    kept = [r for r in records if r is not None and r.until > window.warmup]
    if not kept:
        print(f"interrupted inside the warm-up of {window.warmup:g} s; nothing was measured",
              file=sys.stderr)  # fmt: skip
        raise KeyboardInterrupt
    begun = sum(record is not None for record in records)
    if begun < len(records) or len(kept) < begun:
        kept[-1] = replace(kept[-1], interrupted=True)
    return kept


def _trace_notes(scenario: Scenario) -> tuple[str, ...]:
    trace, window = scenario.traffic.trace, scenario.window
    if not trace:
        return ()
    notes = ["a trace is run once, so there are no intervals"]
    if trace[-1].at < window.warmup + window.seconds:
        notes.append(f"the trace ends at {trace[-1].at:g} s, inside the window")
    return tuple(notes)


def _refuse_unsteady(document: dict[str, Any], overload: bool) -> None:
    """A window in which nobody keeps up has no figures worth an average."""
    asked = [name for name, model in document["models"].items() if model["offered"] > 0]
    hopeless = document["goodput"] < document["offered"] / 2
    if hopeless and asked and set(asked) <= set(document["growing"]) and not overload:
        raise SpecError(
            f"no steady state: all {len(asked)} queues grow, {document['goodput']:.2f} of "
            f"{document['offered']:.2f} requests/s are served; lower the rates or add GPUs, or "
            "print what the window held with --overload"
        )
