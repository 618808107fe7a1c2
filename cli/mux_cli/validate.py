"""`muxserve validate`: what was predicted, what a simulation gives, and what really happens."""

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from mux_cli.plan_manifests import read_manifests
from mux_cli.profile_check import read_profiles
from mux_cli.validate_figures import Comparison, figures_of
from mux_cli.validate_load import Observed, drive
from mux_cli.validate_models import Stage, make_stage
from mux_cli.validate_predict import capacity, predicted, simulated
from mux_cli.validate_table import comparison_document, print_comparison
from mux_cli.validate_unit import KvWatch, RunningUnit, load_average, serving
from mux_core.errors import SpecError
from mux_core.llm import Llm
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.lengths import LengthShape
from mux_core.simulator.workloads import arrivals, streams_of
from mux_core.units import ModelName

EXAMPLES = """examples:
  muxserve profile model-a/ model-b/ -o here.json
  muxserve validate -f manifests/ --profiles here.json --seconds 60
  muxserve validate -f manifests/ --profiles here.json --seconds 60 --load 0.3 0.6 0.9
  muxserve validate -f manifests/ --profiles here.json --seconds 60 --rates model-a=4 model-b=1

The client runs on this machine too, on the same cores as the units. --load gives parts of the
highest rates that the estimator says the units carry, in the manifests' proportions.
"""
TAIL_S: Final = 2.0
"""The load goes on past the window, so that its last requests are served under load as well."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `muxserve validate`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "-f",
        "--filename",
        dest="paths",
        action="append",
        required=True,
        type=Path,
        metavar="FILE|DIR",
        help="manifests, as for muxserve up",
    )
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N",
                        help="window that is compared (default: %(default)g)")  # fmt: skip
    parser.add_argument("--warmup", type=float, default=5.0, metavar="S",
                        help="load before the window (default: %(default)g)")  # fmt: skip
    parser.add_argument("--profiles", type=Path, nargs="+", default=[], metavar="FILE",
                        help="what muxserve profile wrote on this machine")  # fmt: skip
    parser.add_argument("--rates", nargs="+", default=[], metavar="MODEL=RATE",
                        help="requests/s instead of the manifests'")  # fmt: skip
    parser.add_argument("--load", type=float, nargs="+", default=[], metavar="PART",
                        help="parts of the predicted capacity, one run each")  # fmt: skip
    parser.add_argument(
        "--lengths",
        choices=[str(shape) for shape in LengthShape],
        default="sharegpt",
        help="how token lengths vary (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N",
                        help="runs per load, seeds 1 to N")  # fmt: skip
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")


def run(args: argparse.Namespace) -> int:
    """Compares and prints; 1 when requests failed."""
    _check(args)
    workload = read_manifests(args.paths)
    catalog = read_profiles(args.profiles, here=True)
    rates = _rates(args.rates, workload.llms)
    console = Console(stderr=True)
    failed = False
    with serving(args.paths) as units:
        stage = make_stage(units, workload.llms, catalog, rates)
        for load in _loads(args, stage):
            for seed in range(1, args.seeds + 1):
                console.print(f"load {load:.2f} of the rates, seed {seed}", highlight=False)
                found, errors = _compare(args, stage, units, load, seed)
                failed |= bool(errors)
                _print(found, errors, stage, args.output)
    return int(failed)


def _compare(
    args: argparse.Namespace, stage: Stage, units: Sequence[RunningUnit], load: float, seed: int
) -> tuple[Comparison, Mapping[str, int]]:
    """One load and seed: the same arrivals served and simulated."""
    begin, end = args.warmup, args.warmup + args.seconds
    asked = draw_arrivals(stage, load, seed, LengthShape(args.lengths), until=end + TAIL_S)
    watch = KvWatch(units=units)
    seen = asyncio.run(_drive(stage, units, asked, watch, seed))
    observed = {
        model: figures_of(log, begin=begin, end=end, kv=watch.mean(model, begin, end))
        for model, log in seen.requests.items()
    }
    if seen.lag_s > LATE_S:
        print(f"note: this client sent 1 % of its requests over {seen.lag_s * 1e3:.0f} ms late",
              file=sys.stderr)  # fmt: skip
    offered = {model: found.offered for model, found in observed.items()}
    return Comparison(
        load=load, seed=seed, observed=observed,
        predicted=predicted(stage, load, LengthShape(args.lengths), offered),
        simulated=simulated(stage, asked, begin=begin, end=end),
        load_average=load_average(),
    ), seen.errors  # fmt: skip


LATE_S: Final = 0.02


def draw_arrivals(
    stage: Stage, load: float, seed: int, shape: LengthShape, *, until: float
) -> tuple[Arrival, ...]:
    """Poisson arrivals of every model at its rate."""
    llms = [replace(llm, demand=replace(llm.demand, rate=stage.rates[llm.name]))
            for llm in stage.problem.llms]  # fmt: skip
    return tuple(arrivals(streams_of(llms, load=load, shape=shape), seed=seed, until=until))


async def _drive(
    stage: Stage, units: Sequence[RunningUnit], asked: Sequence[Arrival], watch: KvWatch, seed: int
) -> Observed:
    urls = {ModelName(member.model): unit.url for unit in units for member in unit.spec.members}
    watching = asyncio.create_task(watch.run())
    try:
        return await drive(urls, asked, seed=seed, told=lambda count: None)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def _loads(args: argparse.Namespace, stage: Stage) -> Iterator[float]:
    """Factors on the rates: 1, or parts of what the estimator says the units carry."""
    if not args.load:
        yield 1.0
        return
    most = capacity(stage, shape=LengthShape(args.lengths))
    print(f"predicted capacity: {most:.2f} times the rates given", file=sys.stderr)
    yield from (part * most for part in args.load)


def _rates(words: Sequence[str], llms: Sequence[Llm]) -> dict[ModelName, float]:
    rates = {llm.name: llm.demand.rate for llm in llms}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in rates:
            raise SpecError(f"--rates {word}: write MODEL=RATE with a model of the manifests: "
                            f"{', '.join(sorted(rates))}")  # fmt: skip
        try:
            rates[ModelName(name)] = float(text)
        except ValueError:
            raise SpecError(f"--rates {word}: {text!r} is no number") from None
        if not 0 < rates[ModelName(name)] < 1e6:
            raise SpecError(f"--rates {word}: above 0 and below 1e6 requests/s")
    return rates


def _check(args: argparse.Namespace) -> None:
    for name in ("seconds", "warmup"):
        if not 0 < getattr(args, name) < 1e6:
            raise SpecError(f"--{name} {getattr(args, name):g}: seconds above 0")
    if args.seeds < 1:
        raise SpecError(f"--seeds {args.seeds}: at least 1")
    for part in args.load:
        if not 0 < part <= 2:
            raise SpecError(f"--load {part:g}: above 0, at most 2")


def _print(
    found: Comparison, errors: Mapping[str, int], stage: Stage, output: str
) -> None:  # fmt: skip
    for error, count in sorted(errors.items()):
        print(f"{count} requests failed: {error}", file=sys.stderr)
    if output == "json":
        print(json.dumps(comparison_document(found, stage)))
    else:
        print_comparison(found, stage, Console(width=None if sys.stdout.isatty() else 140))
