"""The systems that are simulated: a placement, planned or given, under a policy."""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

from mux_cli.plan import estimator_of, plan_for, planning_arguments, problem_of, read_switches
from mux_cli.plan_document import read_placement
from mux_cli.simulate_arguments import Traffic, Window
from mux_cli.simulate_runs import Replanning, Scenario
from mux_cli.workload_file import Workload
from mux_core.costmodel.profile import profile_of
from mux_core.errors import SpecError
from mux_core.placement import Placement, Share, Unit
from mux_core.simulator.kv import KV_RULES, kv_rule
from mux_core.units import ModelName, NodeName, Percent

PLANNED_KV = ("muxserve-released", "muxserve-fixed", "temporal")
"""Their KV is the fraction of each GPU that MuxServe's planner gives, not all that is left."""
UNSHARED = "spatial-replicas"
REPLAN_S = 60.0
REPLANNED = ("default", "adbs")
"""The only strategy that plans from what runs, the only policy that goes on meanwhile."""
WHOLE = Share(prefill=Percent(100), decode=Percent(100))


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A scenario, and what to say of how its placement came about."""

    strategy: str
    scenario: Scenario
    notes: tuple[str, ...] = ()


def system_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how to plan and how policies behave."""
    planning_arguments(parser)
    parser.add_argument("--kv", metavar="RULE",
                        help="KV of a unit: what the estimator leaves (estimated), what the plan "
                        "divides (planned, the default of MuxServe's strategies), or a part of its "
                        "GPUs' memory (0.5 is MuxServe's for spatial)")  # fmt: skip
    parser.add_argument("--replan", type=float, nargs="?", const=REPLAN_S, metavar="S",
                        help="plan again every S seconds (60) with the rates measured by then; "
                        "engines load, drain and move as a unit does it")  # fmt: skip
    parser.add_argument("--oracle", action="store_true",
                        help="--replan with the true rates of the moment")  # fmt: skip
    parser.add_argument("--policy-switch", action="append", default=[], metavar="NAME=on|off",
                        help="one behaviour of a released policy; repeatable")  # fmt: skip


def make_system(
    args: argparse.Namespace,
    workload: Workload,
    *,
    strategy: str,
    policy: str,
    traffic: Traffic,
    window: Window,
    plan: Path | None = None,
    check: bool = False,
) -> System:
    """Plans, or reads the plan. Raises SpecError where it does not fit the workload."""
    notes: list[str] = []
    if args.kv is not None:
        kv_rule(args.kv)  # Before anything is planned: the message comes at once.
    if plan is None:
        made = plan_for(args, workload, strategy=strategy)
        problem, placement = made.problem, made.plan.proposed
        if strategy == UNSHARED:
            placement = _unshared(placement)
    else:
        placement = read_placement(plan, flag="--plan")
        problem = problem_of(args, workload, Placement())
        check_plan(placement, workload, subject=f"--plan {plan}")
        strategy = _strategy_of(plan) or strategy
    placed = {member.model for _, member in placement.members()}
    absent = [llm.name for llm in workload.llms if llm.name not in placed]
    if absent:
        notes.append(f"no place in the plan, so never served: {', '.join(absent)}")
    scenario = Scenario(
        label=f"{strategy}/{policy}", problem=problem, placement=placement,
        tables=workload.tables, traffic=traffic, window=window, policy=policy,
        switches=read_switches(args.policy_switch),
        kv=args.kv or ("planned" if strategy in PLANNED_KV else "estimated"),
        check=check,
    )  # fmt: skip
    return System(strategy=strategy, scenario=scenario, notes=tuple(notes))


def replanned(args: argparse.Namespace, system: System, *, oracle: bool) -> System:
    """The same system, planning again as `--replan` says; by the true rates if `oracle`."""
    scenario, every = system.scenario, float(args.replan)
    if not every > 0:
        raise SpecError(f"--replan {every:g}: seconds between two plans, above 0")
    if (system.strategy, scenario.policy) != REPLANNED:
        raise SpecError(f"--replan: {scenario.label} cannot; only {'/'.join(REPLANNED)} plans from "
                        "what runs and goes on while its unit changes")  # fmt: skip
    if scenario.kv not in KV_RULES:
        raise SpecError(f"--kv {scenario.kv}: with --replan members come and go, and with them "
                        f"what is left; take {' or '.join(sorted(KV_RULES))}")  # fmt: skip
    if oracle and not scenario.traffic.seeded:
        raise SpecError("--oracle: a trace has requests and no rates; leave it out")
    how = Replanning(
        strategy=system.strategy, estimator=estimator_of(args, system.strategy),
        headroom=args.headroom, switches=read_switches(args.switch), every_s=every, oracle=oracle,
    )  # fmt: skip
    label = f"{scenario.label} {'oracle' if oracle else 'replanned'}"
    return replace(system, scenario=replace(scenario, label=label, replanning=how))


def may_replan(args: argparse.Namespace) -> bool:
    """Whether `--replan` is asked for. Raises SpecError for `--oracle` without it."""
    if args.oracle and args.replan is None:
        raise SpecError("--oracle: says with which rates to plan again; add --replan")
    return args.replan is not None


def _unshared(placement: Placement) -> Placement:
    """Whole GPUs run at 100 %; their plan is priced at the 90 % that MuxServe's rules know."""
    units = tuple(
        unit.with_members(tuple(replace(member, share=WHOLE) for member in unit.members))
        for unit in placement.units
    )
    return Placement(units=units)


def _strategy_of(plan: Path) -> str:
    return str(json.loads(plan.read_text(encoding="utf-8")).get("strategy") or "")


def check_plan(placement: Placement, workload: Workload, *, subject: str) -> None:
    """Raises SpecError for a plan that was made for other LLMs or other GPUs."""
    slots = {node.name: node.gpus for node in workload.nodes}
    taken: dict[tuple[NodeName, int], str] = {}
    for unit in placement.units:
        gpus = slots.get(unit.group.node, 0)
        for gpu in unit.group.gpus:
            where = f"{subject}: unit {unit.id} on {unit.group.node}/{gpu}"
            if not 0 <= gpu < gpus:
                raise SpecError(f"{where}: the workload has no such GPU; plan for this workload")
            if (unit.group.node, gpu) in taken:
                raise SpecError(f"{where}: the GPU is already of unit "
                                f"{taken[unit.group.node, gpu]}; a GPU has one unit")  # fmt: skip
            taken[unit.group.node, gpu] = unit.id
        _check_members(unit, workload, subject)


def _check_members(unit: Unit, workload: Workload, subject: str) -> None:
    llms = {llm.name: llm for llm in workload.llms}
    gpu = {node.name: node.gpu for node in workload.nodes}[unit.group.node]
    for member in unit.members:
        where = f"{subject}: unit {unit.id}, model {member.model}"
        llm = llms.get(ModelName(member.model))
        if llm is None:
            raise SpecError(f"{where}: not in the workload; plan for this workload")
        if member.tensor != unit.group.size:
            raise SpecError(f"{where}: tensor {member.tensor} on {unit.group.size} GPUs; an LLM "
                            "spans its unit")  # fmt: skip
        known = profile_of(llm, gpu, workload.tables).table.tensors
        if member.tensor not in known:
            raise SpecError(f"{where}: tensor {member.tensor}; its profile has "
                            f"{', '.join(map(str, known))}")  # fmt: skip
