"""`muxserve validate`: what was predicted, what a simulation gives, and what really happens."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from mux_cli.plan_manifests import read_manifests
from mux_cli.profile_check import read_profiles
from mux_cli.validate_figures import Comparison
from mux_cli.validate_models import Stage, make_stage
from mux_cli.validate_predict import capacity
from mux_cli.validate_runs import Run, Window, compare, serve_load
from mux_cli.validate_table import comparison_document, print_comparison
from mux_cli.validate_unit import serving
from mux_core.errors import SpecError
from mux_core.llm import Llm
from mux_core.simulator.lengths import LengthShape
from mux_core.units import ModelName

EXAMPLES = """examples:
  muxserve profile model-a/ model-b/ -o here.json
  muxserve validate -f manifests/ --profiles here.json --seconds 60
  muxserve validate -f manifests/ --profiles here.json --seconds 60 --load 0.3 0.6 0.9
  muxserve validate -f manifests/ --profiles here.json --seconds 60 --rates model-a=4 model-b=1

The client runs on this machine too, on the same cores as the units. --load gives parts of the
highest rates that the estimator says the units carry, in the manifests' proportions.
"""
LATE_S: Final = 0.02
"""A client later than this is short of processor time itself; that is said."""


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
    window = Window(warmup=args.warmup, seconds=args.seconds, shape=LengthShape(args.lengths))
    failed = False
    with serving(args.paths) as units:
        stage = make_stage(units, workload.llms, catalog, rates)
        for load in _loads(args, stage):
            for seed in range(1, args.seeds + 1):
                console.print(f"load {load:.3f} of the rates, seed {seed}", highlight=False)
                served = serve_load(stage, units, load=load, seed=seed, window=window)
                failed |= bool(served.errors)
                _print(compare(stage, served), served, stage, args.output)
    return int(failed)


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


def _print(found: Comparison, run: Run, stage: Stage, output: str) -> None:
    for error, count in sorted(run.errors.items()):
        print(f"{count} requests failed: {error}", file=sys.stderr)
    if run.lag_s > LATE_S:
        print(f"note: this client sent 1 % of its requests over {run.lag_s * 1e3:.0f} ms late",
              file=sys.stderr)  # fmt: skip
    if output == "json":
        print(json.dumps(comparison_document(found, stage)))
    else:
        print_comparison(found, stage, Console(width=None if sys.stdout.isatty() else 140))
