"""Our plan beside the baselines on cases that nothing was tuned to; exit code 1 where one is ahead.

    python benchmarks/planner/held_out.py [--limit 1]

Other exponents, densities and cluster shapes, popularity with and against model size. Ahead: more
goodput or a better worst ratio than ours, or all demand met with fewer GPUs; estimator `muxserve`.
"""

import argparse
import random
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cases
from bars import BASELINES, planned, shown

from mux_core.planning import Plan

SHAPES = {"4x8": (4, 8), "1x8": (1, 8), "2x4": (2, 4), "8x8": (8, 8), "16x2": (16, 2)}
PERMUTED = 11


def workloads():  # type: ignore[no-untyped-def]
    """(name, LLMs, cluster shapes to try them on)."""
    for alpha, scale, shuffled in product((0.5, 1.3, 1.7, 2.5), (0.5, 1.5), (False, True)):
        llms = cases.power_law(alpha, scale)
        if shuffled:
            rates = [llm.demand.rate for llm in llms]
            random.Random(PERMUTED).shuffle(rates)
            llms = tuple(cases.at_rate(m, r) for m, r in zip(llms, rates, strict=True))
        yield f"{alpha}/{scale}{' permuted' if shuffled else ''}", llms, ("4x8",)
    for density in (300, 1200, 3000):
        yield f"chat{density}", cases.chatlmsys(density), ("4x8", "8x8")
    for shape in ("1x8", "2x4", "8x8", "16x2"):
        yield "1.3/1.0", cases.power_law(1.3, 1.0), (shape,)
        small = tuple(m for m in cases.power_law(0.9, 0.4) if m.profile != "llama-65b")
        yield "0.9/0.4 without 65B", small, (shape,)


def ahead(other: Plan, ours: Plan, offered: float) -> bool:
    theirs, own = other.prediction, ours.prediction
    if theirs.goodput > own.goodput + 0.005 or theirs.worst_ratio > own.worst_ratio + 0.0005:
        return True
    met = own.goodput >= offered - 1e-6 and theirs.goodput >= offered - 1e-6
    return met and theirs.gpus_used < own.gpus_used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="tensor-parallel members per unit, of ours")
    args = parser.parse_args()
    lost = 0
    print(f"{'case':22} {'offered':>7} | ours: goodput ratio GPUs  cpu s | {' | '.join(BASELINES)}")
    for name, llms, shapes in workloads():
        for shape in shapes:
            cluster = cases.nodes(*SHAPES[shape])
            ours = planned("default", "muxserve",
                           cases.problem(llms, cluster=cluster, limit=args.limit))  # fmt: skip
            assert ours is not None
            offered = sum(llm.demand.rate for llm in llms)
            others = [planned(strategy, "muxserve", cases.problem(llms, cluster=cluster))
                      for strategy in BASELINES]  # fmt: skip
            won = [found for found in others if found and ahead(found[0], ours[0], offered)]
            lost += bool(won)
            print(f"{name:17} {shape:>4} {offered:7.2f} | {shown(ours)} {ours[1]:6.2f} | "
                  f"{' | '.join(shown(found) for found in others)}"
                  f"{'  BEHIND' if won else ''}", flush=True)  # fmt: skip
    print(f"{lost} cases in which a baseline is ahead")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
