"""Our plans beside MuxServe's and beside whole GPUs, on MuxServe's own numbers.

    python benchmarks/planner/bars.py [--further] [--bound] [--estimator default]

Every figure of docs/planning.md's tables comes from here. Wall time on a shared machine varies;
CPU seconds are printed.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cases

from mux_core.errors import MuxError
from mux_core.planners.bound import bound_of
from mux_core.planners.strategies import make_estimator, make_planner
from mux_core.planning import PlacementProblem, Plan, best_plan

BASELINES = ("muxserve-released", "muxserve-fixed", "spatial-replicas")


def planned(strategy: str, estimator: str, problem: PlacementProblem) -> tuple[Plan, float] | None:
    planner = make_planner(strategy, estimator=make_estimator(estimator))
    started = time.process_time()
    try:
        plan = best_plan(planner, problem, max_steps=100_000)
    except MuxError:
        return None
    return plan, time.process_time() - started


def shown(found: tuple[Plan, float] | None) -> str:
    if found is None:
        return "       none       "
    outcome = found[0].prediction
    return f"{outcome.goodput:7.2f} {outcome.worst_ratio:5.3f} {outcome.gpus_used:3d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--further", action="store_true", help="cases nothing was tuned to")
    parser.add_argument("--bound", action="store_true", help="also the bound and its gap")
    parser.add_argument("--estimator", default="muxserve", help="of our plan: muxserve or default")
    args = parser.parse_args()
    asked = cases.further() if args.further else cases.published()
    for limit in (None, 1):
        print(f"\ntensor-parallel members per unit: {'any' if limit is None else limit}")
        print(f"{'case':9} {'offered':>7} | ours: goodput ratio GPUs  cpu s | first fit | "
              f"{' | '.join(BASELINES)}")  # fmt: skip
        for name, llms in asked.items():
            problem = cases.problem(llms, limit=limit)
            ours = planned("default", args.estimator, problem)
            assert ours is not None
            others = [shown(planned(s, "muxserve", cases.problem(llms))) for s in BASELINES]
            first_fit = cases.FIRST_FIT.get(name, (0, 0))[0 if limit is None else 1] or "-"
            offered = sum(llm.demand.rate for llm in llms)
            print(f"{name:9} {offered:7.2f} | {shown(ours)} {ours[1]:6.2f} | {first_fit!s:>9} | "
                  f"{' | '.join(others)}", flush=True)  # fmt: skip
            if args.bound:
                bound = bound_of(ours[0], problem, make_estimator(args.estimator))
                print(f"          bound: {bound.gpus} GPUs, goodput {bound.goodput:.2f}, "
                      f"gap {bound.gap:.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
