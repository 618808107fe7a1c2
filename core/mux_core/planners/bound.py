"""What no placement under the same estimator and constraints can beat, as a linear program (HiGHS).

A unit of a kind is a choice of at most one option per LLM within its memory, its SM percent and
its prefill time (`unit_options`). The program lets fractions of units and options mix and keeps the
sums: per kind and interval of prefill time, the options used fit into that many units, an LLM is
at most once in each, and the served rates add up. Every real placement is a point of it, so its
optimum bounds them all: GPUs from below where demand is met, goodput from above where it is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from mux_core.estimator.unit import GroupKind, UnitEstimator
from mux_core.llm import Llm
from mux_core.planners.capacity import capacity_of
from mux_core.planners.packing import LEAST_RATE, MAX_MEMBERS
from mux_core.planners.unit_options import Options, unit_options
from mux_core.planning import Bound, PlacementProblem, Plan

MOST_LLMS = 64
"""Beyond this many LLMs the program takes longer than the plan; memory alone bounds them."""
MET = 1e-6


@dataclass(frozen=True, slots=True)
class _Case:
    """Units of one kind and tenant group in one interval of prefill time."""

    kind: GroupKind
    options: Options
    most_members: int


@dataclass(slots=True)
class _Program:
    """Rows and columns of the program while it is built; every row is `<= limit`."""

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    upper: list[float | None] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)

    def row(self, limit: float) -> int:
        self.limits.append(limit)
        return len(self.limits) - 1

    def column(self, cost: float, *, lower: float = 0.0, upper: float | None = None) -> int:
        self.cost.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        return len(self.cost) - 1

    def put(self, row: int, column: int, value: float) -> None:
        self.rows.append(row)
        self.columns.append(column)
        self.values.append(value)

    def solve(self) -> float | None:
        """The least cost; None where HiGHS finds none."""
        shape = (len(self.limits), len(self.cost))
        matrix = coo_matrix((self.values, (self.rows, self.columns)), shape=shape).tocsc()
        bounds = list(zip(self.lower, self.upper, strict=True))
        found = linprog(self.cost, A_ub=matrix, b_ub=self.limits, bounds=bounds, method="highs-ipm")
        return float(found.fun) if found.status == 0 else None


def bound_of(plan: Plan, problem: PlacementProblem, estimator: UnitEstimator) -> Bound:
    """The bound for the objective that decides, with the plan's gap to it.

    GPUs where the plan meets all demand; else goodput at the plan's own worst ratio.
    """
    if memory_only(problem):
        return _memory_bound(plan, problem, estimator)
    llms = sorted(problem.llms, key=lambda llm: llm.name)
    offered = sum(llm.demand.rate for llm in llms)
    cases = _cases(problem, estimator, llms)
    least = _solve(cases, llms, gpus=None, floor=1.0)
    gpus = ceil((least or 0.0) - MET)
    total = capacity_of(problem.nodes, (1,), limit=problem.policy.gpu_limit).limit
    found = plan.prediction
    if found.goodput >= offered * (1 - MET):
        return Bound(gpus=gpus, goodput=offered, gap=found.gpus_used / max(1, gpus) - 1)
    served = _solve(cases, llms, gpus=total, floor=found.worst_ratio)
    goodput = offered if served is None else min(offered, -served)
    gap = goodput / found.goodput - 1 if found.goodput > 0 else float(goodput > 0)
    return Bound(gpus=gpus, goodput=goodput, gap=max(0.0, gap))


def memory_only(problem: PlacementProblem) -> bool:
    """Is the problem too large for more than a bound by memory?"""
    return len(problem.llms) > MOST_LLMS


def _memory_bound(plan: Plan, problem: PlacementProblem, estimator: UnitEstimator) -> Bound:
    """The crude bound of a large problem: one replica of each LLM has to fit somewhere."""
    kinds = capacity_of(problem.nodes, problem.policy.group_sizes, limit=None).kinds
    least = 0.0
    for llm in problem.llms:
        held = [estimator.footprint(llm, k) * k.gpus for k in estimator.sizes(llm, kinds)]
        least += min(held, default=0.0) * max(1, llm.min_replicas)
    gpus = max(1, ceil(least - MET))
    offered = sum(llm.demand.rate for llm in problem.llms)
    found = plan.prediction
    if found.goodput >= offered * (1 - MET):
        return Bound(gpus=gpus, goodput=offered, gap=found.gpus_used / gpus - 1)
    return Bound(gpus=gpus, goodput=offered, gap=offered / max(found.goodput, MET) - 1)


def _solve(
    cases: Sequence[_Case], llms: Sequence[Llm], *, gpus: int | None, floor: float
) -> float | None:
    """Fewest GPUs that serve all, or minus the most goodput within `gpus`."""
    program = _Program()
    demands = []
    for llm in llms:
        rate = max(llm.demand.rate, LEAST_RATE)
        # sum of served >= rate, or >= y with y between the floor and the rate.
        demands.append(program.row(-rate if gpus is None else 0.0))
        if gpus is not None:
            y = program.column(-1.0, lower=floor * rate * (1 - MET), upper=rate)
            program.put(demands[-1], y, 1.0)
    replicas = [
        program.row(-float(max(llm.min_replicas, _replicas(cases, index, llm.demand.rate * floor))))
        for index, llm in enumerate(llms)
    ]
    budget = program.row(float(gpus)) if gpus is not None else None
    for case in cases:
        _add_case(program, case, demands, replicas, budget)
    return program.solve()


def _replicas(cases: Sequence[_Case], index: int, rate: float) -> int:
    """Replicas that `rate` takes at least: whole ones, each with its own weights."""
    rates = (option.rate for case in cases for option in case.options[index])
    most = max(rates, default=0.0)
    return ceil(rate / most - MET) if most > 0 else 0


def _add_case(
    program: _Program,
    case: _Case,
    demands: Sequence[int],
    replicas: Sequence[int],
    budget: int | None,
) -> None:
    units = program.column(float(case.kind.gpus) if budget is None else 0.0)
    if budget is not None:
        program.put(budget, units, float(case.kind.gpus))
    memory, percent, prefill, members = (program.row(0.0) for _ in range(4))
    for row, each in ((memory, 1.0), (percent, 100.0), (prefill, 1.0),
                      (members, float(case.most_members))):  # fmt: skip
        program.put(row, units, -each)
    for index, options in enumerate(case.options):
        if not options:
            continue
        once = program.row(0.0)
        program.put(once, units, -1.0)
        for option in options:
            used = program.column(0.0)
            program.put(once, used, 1.0)
            program.put(members, used, 1.0)
            program.put(memory, used, option.memory)
            program.put(percent, used, float(option.percent))
            program.put(prefill, used, option.prefill)
            program.put(demands[index], used, -option.rate)
            program.put(replicas[index], used, -1.0)


def _cases(problem: PlacementProblem, estimator: UnitEstimator, llms: Sequence[Llm]) -> list[_Case]:
    policy = problem.policy
    rates = [max(llm.demand.rate, LEAST_RATE) for llm in llms]
    groups = sorted({llm.sharing.tenant_group for llm in llms if not llm.sharing.exclusive})
    cases = []
    for kind in capacity_of(problem.nodes, policy.group_sizes, limit=None).kinds:
        most = MAX_MEMBERS if policy.allow_sharing else 1
        if policy.max_tensor_members is not None and kind.gpus > 1:
            most = min(most, policy.max_tensor_members)
        for options in unit_options(estimator, kind, llms, rates):
            for group in groups:
                cases.append(_Case(kind, _of_group(options, llms, group), most))
            alone = [
                o if llm.sharing.exclusive else [] for o, llm in zip(options, llms, strict=True)
            ]
            cases.append(_Case(kind, alone, 1))
    return [case for case in cases if any(case.options)]


def _of_group(options: Options, llms: Sequence[Llm], group: str) -> Options:
    return [
        found if llm.sharing.tenant_group == group and not llm.sharing.exclusive else []
        for found, llm in zip(options, llms, strict=True)
    ]
