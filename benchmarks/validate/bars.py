"""How good predictions are: three tiny models in one CPU unit, Poisson load, against their bars.

    python benchmarks/validate/bars.py                                  # profile, 3 loads, 5 seeds
    python benchmarks/validate/bars.py --requests 60 --seeds 1          # a look, in minutes
    python benchmarks/validate/bars.py --profile p.json --runs r.jsonl  # goes on where it was

Each run sends at least `--requests` requests per model inside its window, at 30, 60 and 90 % of the
capacity that the estimator predicts. Client and unit share the cores of this machine. The same runs
are held against these sets of costs:

* measured: every model and every pair was profiled;
* pair unseen: the interference of one pair is left out, the other pairs stand for it;
* model unseen: one model's steps and pairs are left out, it has a fit to the other two.

Figures of the seeds are averaged, then compared; the bars for the unseen are twice as wide. Run it
on a quiet machine: with every run it prints the load average, and how many times as long as beside
the profile a fixed piece of work took.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mux_cli.demo_files import write_manifests
from mux_cli.plan_manifests import read_manifests
from mux_cli.profile_check import read_profiles
from mux_cli.tiny_models import write_demo
from mux_cli.validate_models import Stage, make_stage
from mux_cli.validate_predict import capacity
from mux_cli.validate_runs import Run, Window, compare, serve_load
from mux_cli.validate_table import comparison_document
from mux_cli.validate_unit import RunningUnit, serving
from mux_core.costmodel.profile_set import ProfileSet
from mux_core.costmodel.sources import ProfileCatalog
from mux_core.simulator.lengths import LengthShape

LOADS = (0.3, 0.6, 0.9)
WARMUP_S = 10.0
MEMORY = "1Gi"

Figure = Callable[[Mapping[str, Any]], float | None]
BARS: Mapping[str, tuple[Figure, float, float]] = {
    "goodput": (lambda m: min(m["offered"], m["served"]), 0.05, 0.10),
    "TPOT mean": (lambda m: m["tpot"]["mean"], 0.10, 0.15),
    "TTFT p99": (lambda m: m["ttft"]["p99"], 0.25, 0.35),
}
"""Figure, bar of the simulator, bar of the estimator; relative."""


@dataclass(frozen=True)
class Variant:
    """A set of costs, and how much wider its bars are."""

    name: str
    stage: Stage
    width: float


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="mux-bars-") as folder:
        models = write_demo(args.models or Path(folder) / "models")
        profile = args.profile or Path(folder) / "profile.json"
        if not profile.exists():
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "mux_cli.main",
                    "profile",
                    *map(str, models.values()),
                    "--max-batch",
                    "64",
                    "--memory",
                    "0.5",
                    "-o",
                    str(profile),
                ],
                check=True,
            )
        manifests = write_manifests(Path(folder) / "manifests", models, memory=MEMORY)
        for file in manifests.glob("tiny-*.yaml"):
            file.write_text(file.read_text().replace('requestRate: "2"', 'requestRate: "1"'))
        done = list(read_runs(args.runs))
        with serving([manifests]) as units:
            done += serve_all(args, manifests, profile, units, done)
    report(done)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000, help="per model, load and seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--lengths", choices=[str(s) for s in LengthShape], default="sharegpt")
    parser.add_argument("--models", type=Path, help="where the tiny models are kept")
    parser.add_argument("--profile", type=Path, help="profile of the three; made when not there")
    parser.add_argument("--runs", type=Path, help="JSON lines of runs: kept there, not done again")
    return parser.parse_args()


def read_runs(path: Path | None) -> Iterator[dict[str, Any]]:
    if path is not None and path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def serve_all(
    args: argparse.Namespace, manifests: Path, profile: Path, units: Sequence[RunningUnit],
    done: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Every load and seed that is not done; each is written down before the next begins."""
    variants = list(make_variants(manifests, profile, units))
    stage, shape = variants[0].stage, LengthShape(args.lengths)
    most = capacity(stage, shape)
    slowest = min(stage.rates.values())
    print(f"predicted capacity {most * sum(stage.rates.values()):.1f} requests/s of all three")
    known = {(run["part"], run["seed"]) for run in done}
    for part in args.loads:
        # Four standard deviations of a Poisson number more, so that no model falls short.
        wanted = args.requests + 4 * math.sqrt(args.requests)
        window = Window(warmup=WARMUP_S, seconds=wanted / (part * most * slowest), shape=shape)
        for seed in range(1, args.seeds + 1):
            if (part, seed) in known:
                continue
            print(f"{part:.0%}, seed {seed}: {window.seconds:.0f} s", flush=True)
            run = serve_load(stage, units, load=part * most, seed=seed, window=window)
            document = run_document(run, part, variants)
            if args.runs is not None:
                with args.runs.open("a") as file:
                    file.write(json.dumps(document) + "\n")
            yield document


def run_document(run: Run, part: float, variants: Sequence[Variant]) -> dict[str, Any]:
    return {
        "part": part, "seed": run.seed, "errors": dict(run.errors), "lag_s": run.lag_s,
        "variants": {
            variant.name: {"width": variant.width,
                           **comparison_document(compare(variant.stage, run), variant.stage)}
            for variant in variants
        },
    }  # fmt: skip


def make_variants(
    manifests: Path, profile: Path, units: Sequence[RunningUnit]
) -> Iterator[Variant]:
    workload = read_manifests([manifests])
    catalog = read_profiles([profile], here=True)
    assert catalog is not None
    (whole,) = catalog.profiles
    first, second, third = (model.name for model in whole.models)
    rates = {llm.name: llm.demand.rate for llm in workload.llms}
    for name, profiles, width in (
        ("measured", whole, 1.0),
        (f"pair {first} + {second} unseen", without_pair(whole, {first, second}), 2.0),
        (f"model {third} unseen", without_model(whole, third), 2.0),
    ):
        stage = make_stage(units, workload.llms, ProfileCatalog((profiles,)), rates)
        yield Variant(name, stage, width)


def without_pair(profiles: ProfileSet, models: set[str]) -> ProfileSet:
    kept = tuple(pair for pair in profiles.pairs if {s.model for s in pair.sides} != models)
    return replace(profiles, pairs=kept)


def without_model(profiles: ProfileSet, model: str) -> ProfileSet:
    kept = tuple(p for p in profiles.pairs if all(side.model != model for side in p.sides))
    return replace(profiles, pairs=kept,
                   models=tuple(m for m in profiles.models if m.name != model))  # fmt: skip


def report(runs: Sequence[Mapping[str, Any]]) -> None:
    """A row per set of costs, load, model and figure; then how many are within their bars."""
    print("\nclient and unit on the same cores; means over seeds; * outside its bar")
    print(f"{'costs':38} {'load':>5} {'model':12} {'figure':10} {'observed':>9} {'simulated':>15} "
          f"{'estimated':>15}")  # fmt: skip
    within: dict[tuple[str, str], list[bool]] = {}
    for variant in runs[0]["variants"]:
        for part in sorted({run["part"] for run in runs}):
            chosen = [run["variants"][variant] for run in runs if run["part"] == part]
            for model in sorted(chosen[0]["models"]):
                rows(variant, part, model, [found["models"][model] for found in chosen],
                     chosen[0]["width"], within)  # fmt: skip
    for (variant, who), marks in within.items():
        print(f"{variant}: {who} within its bars in {sum(marks)} of {len(marks)} rows")
    for run in runs:
        busy = next(iter(run["variants"].values()))["load_average"]
        failed = sum(run["errors"].values())
        slower = next(iter(run["variants"].values()))["slower"]
        told = "not timed" if slower is None else f"x{slower:.2f} of the profile's"
        print(f"{run['part']:.0%}, seed {run['seed']}: yardstick {told}, load average "
              f"{busy:.1f}, client {run['lag_s'] * 1e3:.1f} ms late at most but for 1 %, "
              f"{failed} failed")  # fmt: skip


def rows(
    variant: str, part: float, model: str, seeds: Sequence[Mapping[str, Any]], width: float,
    within: dict[tuple[str, str], list[bool]],
) -> None:  # fmt: skip
    for name, (figure, simulator, estimator) in BARS.items():
        seen = mean(figure, [seed["observed"] for seed in seeds])
        unit = 1.0 if name == "goodput" else 1000.0
        cells = []
        for who, bar in (("simulated", simulator), ("predicted", estimator)):
            said = mean(figure, [seed[who] for seed in seeds])
            off = said / seen - 1
            good = abs(off) <= bar * width
            within.setdefault((variant, who), []).append(good)
            cells.append(f"{said * unit:8.2f} {off:+5.0%}{' ' if good else '*'}")
        print(f"{variant:38} {part:5.0%} {model:12} {name:10} {seen * unit:9.2f} "
              f"{cells[0]:>15} {cells[1]:>15}")  # fmt: skip


def mean(figure: Figure, of: Sequence[Mapping[str, Any]]) -> float:
    known = [value for found in of if (value := figure(found)) is not None]
    return sum(known) / len(known) if known else float("nan")


if __name__ == "__main__":
    main()
