"""`muxserve plan`: which LLMs share which GPUs, before anyone buys one."""

import argparse
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from mux_cli.output import output_argument, print_result
from mux_cli.plan_document import plan_document, read_placement
from mux_cli.plan_manifests import read_manifests
from mux_cli.plan_table import print_plan
from mux_cli.profile_check import read_profiles
from mux_cli.workload_file import Workload, read_workload
from mux_core.costmodel.sources import Source, choose_costs
from mux_core.errors import SpecError
from mux_core.estimator.unit import UnitEstimator
from mux_core.placement import Placement
from mux_core.planners.capacity import capacity_of
from mux_core.planners.strategies import ESTIMATORS, STRATEGIES, make_estimator, make_planner
from mux_core.planning import Objective, PlacementProblem, Plan, Planner
from mux_core.units import ModelName, format_bytes

QUIET_S = 2.0
"""A search longer than this says how far it is."""

EXAMPLES = """examples:
  muxserve workload --power-law 0.9 --scale 1 --out w.json
  muxserve plan --workload w.json                          the fewest GPUs that meet all demand
  muxserve plan --workload w.json --gpus 16 --frontier     too few GPUs: goodput against fairness
  muxserve plan --workload w.json --strategy muxserve-released --switch full_cap_zero=off
  muxserve plan --workload w.json --current old.json -o json    few moves from what runs
  muxserve plan -f pool.yaml -f models/                    from the manifests of a cluster
  muxserve plan -f models/ --profiles here.json            with step times measured on its device

Estimator `default` charges interference, queueing, SLOs and headroom; `muxserve` uses MuxServe's
own cost rules, so that plans compare on MuxServe's own numbers. docs/planning.md explains both.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `muxserve plan`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--workload",
        type=Path,
        metavar="FILE",
        help="workload file, JSON or YAML (see muxserve workload)",
    )
    source.add_argument(
        "-f",
        "--filename",
        type=Path,
        action="append",
        metavar="PATH",
        help="manifests: GPUPool and LLMDeployments; a file or folder, repeatable",
    )
    parser.add_argument("--strategy", choices=STRATEGIES, default="default")
    planning_arguments(parser)
    parser.add_argument(
        "--current",
        type=Path,
        metavar="PLAN.json",
        help="what runs now; the plan then prefers few moves",
    )
    parser.add_argument(
        "--frontier", action="store_true", help="also show goodput against the worst ratio"
    )
    parser.add_argument("--no-bound", action="store_true", help="do not compute the bound")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write pictures of the plan")
    output_argument(parser)


def planning_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says how to plan, for every command that does."""
    parser.add_argument(
        "--estimator",
        choices=ESTIMATORS,
        help="default for strategy default, muxserve for the others",
    )
    parser.add_argument(
        "--switch",
        action="append",
        default=[],
        metavar="NAME=on|off",
        help="one behaviour of the released planner; repeatable",
    )
    parser.add_argument(
        "--objective",
        choices=[str(o) for o in Objective],
        default="gpus",
        help="gpus: fewest GPUs; attainment: best SLO attainment on the GPUs",
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="use at most N GPUs")
    parser.add_argument(
        "--headroom",
        type=float,
        default=0.9,
        help="highest utilisation of a member, estimator default (0.9)",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        metavar="S",
        help="stop the search after S seconds and take the best so far",
    )
    parser.add_argument(
        "--profiles",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="step times that muxserve profile measured; models of other shapes get a fit to them",
    )


def with_costs(
    args: argparse.Namespace, workload: Workload
) -> tuple[Workload, Mapping[ModelName, Source]]:
    """The workload with the best step times there are for each LLM, and what those stand on."""
    catalog = read_profiles(args.profiles)
    costs = choose_costs(workload.llms, workload.nodes, catalog, workload.tables)
    return replace(workload, llms=costs.llms, tables=costs.tables), costs.sources


@dataclass(frozen=True, slots=True, kw_only=True)
class Planning:
    """A plan and how it came about. `stopped`: by its deadline or by Ctrl-C."""

    plan: Plan
    problem: PlacementProblem
    planner: Planner
    costs: UnitEstimator
    estimator: str
    seconds: float
    stopped: bool


def estimator_of(args: argparse.Namespace, strategy: str) -> str:
    """The estimator asked for, else the one that a strategy is meant to be judged by."""
    return args.estimator or ("default" if strategy == "default" else "muxserve")


def plan_for(
    args: argparse.Namespace,
    workload: Workload,
    *,
    strategy: str,
    current: Placement | None = None,
) -> Planning:
    """Plans a workload as `planning_arguments` say. Raises SpecError where that cannot be."""
    _check(args)
    problem = problem_of(args, workload, current or Placement())
    estimator = estimator_of(args, strategy)
    costs = make_estimator(estimator, headroom=args.headroom, tables=workload.tables)
    _refuse_impossible(problem, costs)
    planner = make_planner(strategy, estimator=costs, switches=read_switches(args.switch))
    started = time.monotonic()
    plan, stopped = search(planner, problem, deadline=args.deadline)
    seconds = time.monotonic() - started
    return Planning(
        plan=plan, problem=problem, planner=planner, costs=costs, estimator=estimator,
        seconds=seconds, stopped=stopped,
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Plans and prints."""
    given = read_workload(args.workload) if args.workload else read_manifests(args.filename)
    workload, sources = with_costs(args, given)
    current = read_placement(args.current, flag="--current") if args.current else None
    made = plan_for(args, workload, strategy=args.strategy, current=current)
    plan = made.plan
    if not args.no_bound:
        plan = _bounded(plan, made.problem, made.costs)
    document = plan_document(
        plan, made.problem, estimator=made.estimator, seconds=made.seconds,
        deadline_hit=made.stopped, sources=sources,
    )  # fmt: skip
    if args.frontier:
        document["frontier"] = _frontier(made.planner, made.problem)
    if args.plot:
        from mux_cli.plan_plot import plot_plan

        plot_plan(document, args.plot)
    print_result(document, args.output, print_plan)
    return 0


def search(
    planner: Planner, problem: PlacementProblem, *, deadline: float | None
) -> tuple[Plan, bool]:
    """(best plan, was it stopped): by the deadline or Ctrl-C, which keeps the best so far."""
    started = time.monotonic()
    best: Plan | None = None
    with _Progress() as progress:
        try:
            for best in planner.search(problem):
                progress.found = best
                if deadline is not None and time.monotonic() - started > deadline:
                    return best, True
        except KeyboardInterrupt:
            if best is None:
                raise
            return best, True
    assert best is not None
    return best, False


class _Progress:
    """Says on standard error how far a search is that takes longer than `QUIET_S`."""

    def __init__(self) -> None:
        self.found: Plan | None = None
        self._done = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        self._teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._teller.join()

    def _tell(self) -> None:
        started = time.monotonic()
        while not self._done.wait(QUIET_S):
            spent = time.monotonic() - started
            if self.found is None:
                print(f"{spent:.0f} s: packing", file=sys.stderr, flush=True)
                continue
            outcome = self.found.prediction
            print(
                f"{spent:.0f} s: {outcome.gpus_used} GPUs, {outcome.goodput:.2f} requests/s; "
                "Ctrl-C takes this",
                file=sys.stderr,
                flush=True,
            )


def _check(args: argparse.Namespace) -> None:
    if args.gpus is not None and args.gpus < 1:
        raise SpecError(f"--gpus {args.gpus}: at least 1")
    if not 0 < args.headroom <= 1:
        raise SpecError(f"--headroom {args.headroom:g}: above 0, at most 1")
    if args.deadline is not None and not args.deadline > 0:
        raise SpecError(f"--deadline {args.deadline:g}: seconds above 0")


def problem_of(
    args: argparse.Namespace, workload: Workload, current: Placement
) -> PlacementProblem:
    policy = replace(
        workload.policy,
        objective=Objective(args.objective),
        headroom=args.headroom,
        gpu_limit=workload.policy.gpu_limit if args.gpus is None else args.gpus,
    )
    return PlacementProblem(
        now=0.0,
        nodes=workload.nodes,
        llms=workload.llms,
        policy=policy,
        current=current,
    )


def _refuse_impossible(problem: PlacementProblem, estimator: UnitEstimator) -> None:
    """Stops before planning where an LLM can have no place on these GPUs at all."""
    kinds = capacity_of(problem.nodes, problem.policy.group_sizes, limit=None).kinds
    largest = max(kinds)
    total = sum(node.gpus for node in problem.nodes)
    for llm in problem.llms:
        if not estimator.sizes(llm, kinds):
            raise SpecError(
                f"model {llm.name}: weights of {format_bytes(llm.weight_bytes)} with its KV floor "
                f"fit no group it may use (at most {largest.gpus} GPUs of "
                f"{format_bytes(largest.memory)}, allowed_tensor "
                f"{list(llm.allowed_tensor) or 'any'}); use larger GPUs, larger nodes or a lower "
                "kv_request_bytes"
            )
        if llm.min_replicas > total:
            raise SpecError(
                f"model {llm.name}: min_replicas {llm.min_replicas} on {total} GPUs; each replica "
                "needs a unit of its own; lower it"
            )


def read_switches(words: Sequence[str]) -> dict[str, bool]:
    """NAME=on and NAME=off as a mapping."""
    switches: dict[str, bool] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or value not in ("on", "off"):
            raise SpecError(f"--switch {word}: write NAME=on or NAME=off")
        switches[name] = value == "on"
    return switches


def _bounded(plan: Plan, problem: PlacementProblem, costs: UnitEstimator) -> Plan:
    """The plan with its bound; Ctrl-C leaves that out."""
    # HiGHS takes longer to import than a small search to run.
    from mux_core.planners.bound import MOST_LLMS, bound_of, memory_only

    teller = threading.Timer(QUIET_S, lambda: print(
        "computing the bound; Ctrl-C leaves it out, --no-bound skips it",
        file=sys.stderr, flush=True))  # fmt: skip
    teller.daemon = True
    teller.start()
    try:
        plan = replace(plan, bound=bound_of(plan, problem, costs))
    except KeyboardInterrupt:
        return replace(plan, notes=(*plan.notes, "no bound: interrupted"))
    finally:
        teller.cancel()
    if not memory_only(problem):
        return plan
    why = f"bound by memory alone: {len(problem.llms)} models, the program takes {MOST_LLMS}"
    return replace(plan, notes=(*plan.notes, why))


def _frontier(planner: Planner, problem: PlacementProblem) -> list[dict[str, Any]]:
    from mux_core.planners.default import DefaultPlanner

    if not isinstance(planner, DefaultPlanner):
        raise SpecError("--frontier: only strategy default trades goodput against the worst ratio")
    return [
        {
            "floor": floor,
            "goodput": found.goodput,
            "worst_ratio": found.worst_ratio,
            "gpus_used": found.gpus_used,
        }
        for floor, found in planner.frontier(problem)
    ]
