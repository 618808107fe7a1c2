"""Planning time and memory at 4,096 GPUs and 1,000 LLMs, and of a re-plan after one rate change.

python benchmarks/planner/scale.py [--estimator default]
"""

import argparse
import random
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cases

from mux_core.planners.default import DefaultPlanner
from mux_core.planners.strategies import make_estimator
from mux_core.planning import best_plan

LLMS = 1_000
SEED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--estimator", default="muxserve")
    args = parser.parse_args()
    draw = random.Random(SEED)
    sizes = draw.choices(("llama-7b", "llama-13b", "llama-30b", "llama-65b"), [12, 4, 2, 1], k=LLMS)
    llms = tuple(
        cases.llm(f"llm-{i:04d}", size, 300 * (draw.randrange(LLMS) + 1) ** -0.7)
        for i, size in enumerate(sizes)
    )
    problem = cases.problem(llms, cluster=cases.nodes(512))
    planner = DefaultPlanner(estimator=make_estimator(args.estimator))
    plan, spent = timed(planner, problem)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{LLMS} LLMs on 4096 GPUs: {plan.prediction.gpus_used} GPUs, worst ratio "
          f"{plan.prediction.worst_ratio:.3f}, {spent:.1f} s, peak {peak:.2f} GiB")  # fmt: skip
    hotter = tuple(
        cases.at_rate(llm, 2 * llm.demand.rate) if i == 17 else llm for i, llm in enumerate(llms)
    )
    again, spent = timed(planner, replace(problem, llms=hotter, current=plan.proposed))
    print(f"re-plan after one doubled rate: {spent:.2f} s, {len(again.steps)} steps")


def timed(planner, problem):  # type: ignore[no-untyped-def]
    started = time.perf_counter()
    plan = best_plan(planner, problem, max_steps=100_000)
    return plan, time.perf_counter() - started


if __name__ == "__main__":
    main()
