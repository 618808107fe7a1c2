"""How fast the simulator runs: one case of MuxServe's, every decode step a grant, one process.

    python benchmarks/simulator/speed.py [--case 2.1/1.0] [--seconds 600] [--strategy NAME]
                                         [--profile]

Prints requests, output tokens, steps, events, and events per CPU second.
"""

import argparse
import cProfile
import pstats
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "planner"))
import cases

from mux_core.planners.strategies import make_estimator, make_planner
from mux_core.planning import best_plan
from mux_core.simulator.adbs_policy import adbs
from mux_core.simulator.record import RunRecord
from mux_core.simulator.run import Settings, simulate
from mux_core.simulator.workloads import arrivals, streams_of

SEED = 1
PLANNER_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", default="2.1/1.0", choices=cases.published())
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--strategy", default="spatial-replicas")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    args = parser.parse_args()
    asked = cases.problem(cases.published()[args.case])
    planner = make_planner(args.strategy, estimator=make_estimator("default"))
    placement = best_plan(planner, asked, max_steps=PLANNER_STEPS).proposed
    settings = Settings(seconds=args.seconds)
    traffic = arrivals(streams_of(asked.llms), seed=SEED, until=settings.until)

    profiler = cProfile.Profile()
    begun = time.process_time()
    if args.profile:
        profiler.enable()
    record = simulate(asked, placement, traffic, adbs, settings)
    profiler.disable()
    spent = time.process_time() - begun
    print(f"{args.case}, {args.strategy}, {placement.gpus_used} GPUs, {args.seconds:.0f} s")
    print_counts(record, spent)
    if args.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def print_counts(record: RunRecord, spent: float) -> None:
    logs = record.requests.values()
    requests = sum(len(log.arrived) for log in logs)
    tokens = sum(float(np.sum(log.output[~np.isnan(log.finished)])) for log in logs)
    steps = sum(member.decode_steps + member.prefill_steps for member in record.members)
    print(f"{requests} requests, {tokens / 1e6:.1f} M output tokens, {steps} steps in the window, "
          f"{record.events} events")  # fmt: skip
    print(f"{spent:.1f} CPU seconds, {record.events / spent:,.0f} events/s")


if __name__ == "__main__":
    main()
