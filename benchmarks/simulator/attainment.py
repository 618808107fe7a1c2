"""Ours against whole-GPU replicas on the same GPUs: SLO attainment, service and waiting.

    python benchmarks/simulator/attainment.py [--cases 2.1/0.5,chat500] [--seconds 600 --seeds 5]

Ours plans for attainment on the GPUs that spatial-replicas takes. With --fewer also how few GPUs
of ours still attain as much at every scale; with --fairness the worst service ratio against the
max-min optimum of the estimator on those units, and the worst mean TTFT against each LLM alone.
"""

import argparse
from collections.abc import Sequence

import fairness
from report import Table, progress, report
from runs import Measured, Traffic, Window, measure, window_arguments, window_of
from systems import ATTAINMENT, OURS, make_system, published

from mux_core.errors import MuxError
from mux_core.llm import Llm
from mux_core.simulator.intervals import Interval, paired_difference
from mux_core.simulator.measures import RunTally, attainment, goodput

REPLICAS = "spatial-replicas"
SCALES = (2, 3, 5, 8, 10, 20)
EQUAL = 0.002
"""Attainments this close count as the same where no interval says how close they are."""


def difference(ours: Measured, theirs: Measured, scale: int) -> Interval:
    return paired_difference(lambda runs: attainment(runs, scale), ours.runs, theirs.runs)


def mean_attainment(runs: Sequence[RunTally]) -> float:
    return sum(attainment(runs, scale) for scale in SCALES) / len(SCALES)


def is_below(found: Interval) -> bool:
    """Below by more than the interval."""
    return (found.high if found.high is not None else found.value + EQUAL) < 0


def fewest_gpus(llms: tuple[Llm, ...], theirs: Measured, window: Window, most: int) -> int:
    """The least GPUs on which ours is nowhere below, by bisection over the limit."""
    traffic = Traffic(llms=llms)
    low, best = make_system(OURS, llms).placement.gpus_used - 1, most
    while best - low > 1:
        middle = (low + best) // 2
        try:
            ours = measure(make_system(ATTAINMENT, llms, gpus=middle), traffic, window)
            enough = not any(is_below(difference(ours, theirs, scale)) for scale in SCALES)
        except MuxError:
            enough = False
        progress(f"  {middle} GPUs: {'enough' if enough else 'too few'}")
        low, best = (low, middle) if enough else (middle, best)
    return best


def compare(
    case: str, llms: tuple[Llm, ...], window: Window, table: Table, *, fewer: bool
) -> Measured:
    """Adds the case's two rows and answers what ours was measured to be."""
    traffic = Traffic(llms=llms)
    theirs = measure(make_system(REPLICAS, llms), traffic, window)
    gpus = theirs.system.placement.gpus_used
    ours = measure(make_system(ATTAINMENT, llms, gpus=gpus), traffic, window)
    gaps = [difference(ours, theirs, scale) for scale in SCALES]
    below = [scale for scale, gap in zip(SCALES, gaps, strict=True) if is_below(gap)]
    gain = mean_attainment(ours.runs) - mean_attainment(theirs.runs)
    least = fewest_gpus(llms, theirs, window, gpus) if fewer and not below else None
    for found, last in ((theirs, None), (ours, _verdict(below, gain))):
        values = [f"{attainment(found.runs, scale):.1%}" for scale in SCALES]
        table.add(case, found.system.name, found.system.placement.gpus_used,
                  goodput(found.runs), *values, f"{mean_attainment(found.runs):.1%}",
                  least if last else None, last)  # fmt: skip
    return ours


def _verdict(below: Sequence[int], gain: float) -> str:
    if below:
        return f"below at scale {', '.join(map(str, below))}"
    return "held" if gain > 0 else "not above on average"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    window_arguments(parser)
    parser.add_argument("--cases", default="", help="of the published ones, by comma; all")
    parser.add_argument("--fewer", action="store_true", help="how few GPUs are enough")
    parser.add_argument("--fairness", action="store_true", help="worst ratio and worst wait too")
    args = parser.parse_args()
    window = window_of(args)
    known = published()
    chosen = args.cases.split(",") if args.cases else list(known)
    table = Table(
        title="SLO attainment on the GPUs of spatial-replicas",
        columns=("case", "system", "GPUs", "goodput", *(f"SLO {scale}" for scale in SCALES),
                 "mean", "GPUs enough", "bar"),
    )  # fmt: skip
    table.notes.append("Bar: never below by more than the 95 % interval of the paired difference, "
                       "above on average. Attainment is of TTFT and TPOT together.")  # fmt: skip
    worst_off = fairness.fairness_table()
    for case in chosen:
        progress(f"attainment: {case}")
        ours = compare(case, known[case], window, table, fewer=args.fewer)
        if args.fairness:
            fairness.judge(worst_off, case, ours, Traffic(llms=known[case]), window)
    report(args, table, *([worst_off] if args.fairness else []))


if __name__ == "__main__":
    main()
