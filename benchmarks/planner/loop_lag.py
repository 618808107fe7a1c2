"""How long the operator's event loop pauses while 1,000 LLMs are planned: process against thread.

Prints for each the seconds of the search, the longest pause of the loop and the CPU seconds that
this process spent, for a first plan and for a re-plan after one rate doubled.
"""

import argparse
import asyncio
import time
from dataclasses import replace
from random import Random

from mux_core.llm import Demand, Llm
from mux_core.placement import GpuNode
from mux_core.planning import PlacementProblem, PlanningPolicy
from mux_core.units import GIB, Bytes, ModelName, NodeName
from mux_operator.search import Search, SearchProcess, ThreadSearch

WEIGHTS_GIB = {"llama-7b": 14, "llama-13b": 26, "llama-30b": 60}
TICK_S = 0.01


def a_problem(llms: int, gpus: int) -> PlacementProblem:
    draw = Random(1)
    asked = []
    for number in range(llms):
        profile = draw.choices(list(WEIGHTS_GIB), (6, 3, 1))[0]
        asked.append(
            Llm(
                name=ModelName(f"m{number:04}"),
                profile=profile,
                weight_bytes=Bytes(WEIGHTS_GIB[profile] * GIB),
                demand=Demand(rate=round(draw.paretovariate(1.2), 1)),
                max_replicas=16,
            )
        )
    nodes = tuple(
        GpuNode(name=NodeName(f"n{n:03}"), gpus=8, memory=Bytes(80 * GIB), gpu="a100-80gb")
        for n in range(gpus // 8)
    )
    policy = PlanningPolicy(best_effort=True, max_tensor_members=1)
    return PlacementProblem(now=0.0, nodes=nodes, llms=tuple(asked), policy=policy)


async def longest_pause(done: asyncio.Event) -> float:
    longest = 0.0
    while not done.is_set():
        before = time.monotonic()
        await asyncio.sleep(TICK_S)
        longest = max(longest, time.monotonic() - before - TICK_S)
    return longest


async def measure(name: str, search: Search, problem: PlacementProblem) -> None:
    small = replace(problem, llms=problem.llms[:2])
    await search.choose(small, deadline_s=5)  # the process has started
    for what in ("first", "again"):
        done = asyncio.Event()
        pause = asyncio.create_task(longest_pause(done))
        began, cpu = time.monotonic(), time.process_time()
        choice = await search.choose(problem, deadline_s=60)
        took, spent = time.monotonic() - began, time.process_time() - cpu
        done.set()
        print(f"{name:8} {what:6} {took:6.2f} s  pause {1000 * await pause:5.0f} ms  "
              f"CPU here {spent:5.2f} s  steps {len(choice.plan.steps)}")  # fmt: skip
        hot = problem.llms[5]
        hot = replace(hot, demand=replace(hot.demand, rate=2 * hot.demand.rate))
        llms = (*problem.llms[:5], hot, *problem.llms[6:])
        problem = replace(problem, llms=llms, current=choice.plan.proposed)
    await search.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llms", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=4096)
    options = parser.parse_args()
    problem = a_problem(options.llms, options.gpus)
    await measure("process", SearchProcess(), problem)
    await measure("thread", ThreadSearch(), problem)


if __name__ == "__main__":
    asyncio.run(main())
