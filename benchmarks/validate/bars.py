"""How good predictions are: three tiny models in one CPU unit, Poisson load, against their bars.

    python benchmarks/validate/bars.py                                  # profile, 3 loads, 5 seeds
    python benchmarks/validate/bars.py --requests 60 --seeds 1          # a look, in minutes
    python benchmarks/validate/bars.py --profile p.json --runs r.jsonl  # goes on where it was

A pass of the profile is measured before the loads of each seed, so that both see the same machine
where its speed moves. A profile that is whole already is taken as it is. Runs are kept as they were
observed; predictions are made at the end, of the profile that there is then.

Each run sends at least `--requests` requests per model inside its window, at 30, 60 and 90 % of the
capacity that the estimator predicts by then. Client and unit share the cores of this machine. The
same runs are held against these sets of costs:

* measured: every model and every pair was profiled;
* uncorrected: the same, but taken as they are; all others are multiplied by how many times as long
  as beside the profile a fixed piece of work took beside the run;
* pair unseen: no step that was timed in company, and one pair's interference left out: the bench
  and the other pairs stand for it;
* model unseen: one model's steps and pairs are left out, it has a fit to the other two.

Figures of the seeds are averaged, then compared; the bars for the unseen are twice as wide. Run it
on a quiet machine: with every run it prints the load average and that ratio.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mux_cli.demo_files import write_manifests
from mux_cli.plan_manifests import read_manifests
from mux_cli.profile_check import read_profiles
from mux_cli.profile_notes import is_whole
from mux_cli.tiny_models import write_demo
from mux_cli.validate_figures import Comparison, Figures, Spread
from mux_cli.validate_models import Stage, make_stage
from mux_cli.validate_predict import capacity
from mux_cli.validate_runs import Run, Window, compare, draw_arrivals, serve_load, slowness
from mux_cli.validate_unit import RunningUnit, serving
from mux_cli.workload_file import Workload
from mux_core.costmodel.profile_set import ProfileSet
from mux_core.costmodel.sources import ProfileCatalog
from mux_core.simulator.lengths import LengthShape
from mux_core.units import ModelName

LOADS = (0.3, 0.6, 0.9)
WARMUP_S = 10.0
MEMORY = "1Gi"

Figure = Callable[[Figures], float | None]
BARS: Mapping[str, tuple[Figure, float, float]] = {
    "goodput": (lambda f: f.goodput, 0.05, 0.10),
    "TPOT mean": (lambda f: f.tpot.mean, 0.10, 0.15),
    "TTFT p99": (lambda f: f.ttft.p99, 0.25, 0.35),
}
"""Figure, bar of the simulator, bar of the estimator; relative."""


@dataclass(frozen=True)
class Variant:
    """A set of costs, and how much wider its bars are."""

    name: str
    stage: Stage
    width: float


@dataclass(frozen=True)
class Served:
    """A run, and which part of the capacity predicted then it was."""

    part: float
    run: Run


@dataclass(frozen=True)
class Scene:
    """Units that run, the models in them, and where their profile is or will be."""

    units: Sequence[RunningUnit]
    workload: Workload
    models: Sequence[Path]
    profile: Path

    def add_pass(self) -> None:
        """Measures another pass, unless the profile is whole."""
        if is_whole(self.profile):
            return
        subprocess.run([sys.executable, "-m", "mux_cli.main", "profile", *map(str, self.models),
                        "--max-batch", "64", "--memory", "0.5", "--passes", "1",
                        "-o", str(self.profile)],
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip

    def stage(self, profiles: ProfileSet | None) -> Stage:
        llms = self.workload.llms
        catalog = None if profiles is None else ProfileCatalog((profiles,))
        return make_stage(self.units, llms, catalog, {llm.name: llm.demand.rate for llm in llms})

    def measured(self) -> ProfileSet:
        catalog = read_profiles([self.profile], here=True)
        assert catalog is not None
        (whole,) = catalog.profiles
        return whole


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="mux-bars-") as folder:
        models = write_demo(args.models or Path(folder) / "models")
        manifests = write_manifests(Path(folder) / "manifests", models, memory=MEMORY)
        for file in manifests.glob("tiny-*.yaml"):
            file.write_text(file.read_text().replace('requestRate: "2"', 'requestRate: "1"'))
        with serving([manifests]) as units:
            scene = Scene(units, read_manifests([manifests]), list(models.values()),
                          args.profile or Path(folder) / "profile.json")  # fmt: skip
            served = list(read_runs(args.runs, scene.stage(None)))
            served += serve_all(args, scene, served)
            variants = list(make_variants(scene))
    report(variants, served)


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


def serve_all(
    args: argparse.Namespace, scene: Scene, done: Sequence[Served]
) -> Iterator[Served]:  # fmt: skip
    """Every load and seed that is not done; each is written down before the next begins."""
    known = {(found.part, found.run.seed) for found in done}
    for seed in range(1, args.seeds + 1):
        missing = [part for part in args.loads if (part, seed) not in known]
        if not missing:
            continue
        scene.add_pass()
        stage = scene.stage(scene.measured())
        most = capacity(stage, LengthShape(args.lengths))
        for part in missing:
            window = make_window(args, part * most * min(stage.rates.values()))
            print(f"{part:.0%}, seed {seed}: {window.seconds:.0f} s", flush=True)
            run = serve_load(stage, scene.units, load=part * most, seed=seed, window=window)
            if args.runs is not None:
                with args.runs.open("a") as file:
                    file.write(json.dumps(run_document(part, run)) + "\n")
            yield Served(part, run)


def make_window(args: argparse.Namespace, rate: float) -> Window:
    """Long enough for every model's requests at the lowest of their rates."""
    # Four standard deviations of a Poisson number more, so that no model falls short.
    wanted = args.requests + 4 * math.sqrt(args.requests)
    return Window(warmup=WARMUP_S, seconds=wanted / rate, shape=LengthShape(args.lengths))


def run_document(part: float, run: Run) -> dict[str, Any]:
    return {
        "part": part, "load": run.load, "seed": run.seed, "seconds": run.window.seconds,
        "shape": str(run.window.shape), "errors": dict(run.errors), "lag_s": run.lag_s,
        "load_average": run.load_average, "yardstick_s": run.yardstick_s,
        "observed": {model: asdict(figures) for model, figures in run.observed.items()},
    }  # fmt: skip


def read_runs(path: Path | None, stage: Stage) -> Iterator[Served]:
    """Runs that were kept; their arrivals are drawn again."""
    if path is None or not path.exists():
        return
    for found in map(json.loads, path.read_text().splitlines()):
        load, seed = found["load"], found["seed"]
        window = Window(warmup=WARMUP_S, seconds=found["seconds"],
                        shape=LengthShape(found["shape"]))  # fmt: skip
        yield Served(found["part"], Run(
            load=load, seed=seed, window=window, asked=draw_arrivals(stage, load, seed, window),
            observed={ModelName(m): figures_read(f) for m, f in found["observed"].items()},
            errors=found["errors"], lag_s=found["lag_s"], load_average=found["load_average"],
            yardstick_s=found["yardstick_s"]))  # fmt: skip


def figures_read(found: Mapping[str, Any]) -> Figures:
    return Figures(**{**found, "ttft": Spread(**found["ttft"]), "tpot": Spread(**found["tpot"])})


def make_variants(scene: Scene) -> Iterator[Variant]:
    whole = scene.measured()
    first, second, third = (model.name for model in whole.models)
    for name, profiles, width in (
        ("measured", whole, 1.0),
        ("uncorrected", replace(whole, made=replace(whole.made, yardstick_s=0.0)), 1.0),
        (f"pair {first} + {second} unseen", without_pair(whole, {first, second}), 2.0),
        (f"model {third} unseen", without_model(whole, third), 2.0),
    ):
        yield Variant(name, scene.stage(profiles), width)


def without_pair(profiles: ProfileSet, models: set[str]) -> ProfileSet:
    kept = tuple(pair for pair in profiles.pairs if {s.model for s in pair.sides} != models)
    bench = tuple(replace(model, served=None) for model in profiles.models)
    return replace(profiles, pairs=kept, models=bench)


def without_model(profiles: ProfileSet, model: str) -> ProfileSet:
    kept = tuple(p for p in profiles.pairs if all(side.model != model for side in p.sides))
    return replace(profiles, pairs=kept,
                   models=tuple(m for m in profiles.models if m.name != model))  # fmt: skip


def report(variants: Sequence[Variant], served: Sequence[Served]) -> None:
    """A row per set of costs, load, model and figure; then how many are within their bars."""
    print("\nclient and unit on the same cores; means over seeds; * outside its bar")
    print(f"{'costs':38} {'load':>5} {'model':12} {'figure':10} {'observed':>9} {'simulated':>15} "
          f"{'estimated':>15}")  # fmt: skip
    parts = sorted({found.part for found in served})
    for variant in variants:
        within: dict[str, list[bool]] = {"simulated": [], "estimated": []}
        for part in parts:
            found = [compare(variant.stage, one.run) for one in served if one.part == part]
            for model in sorted(found[0].observed):
                rows(variant, part, model, found, within)
        for who, marks in within.items():
            print(f"{variant.name}: {who} within its bars in {sum(marks)} of {len(marks)} rows",
                  flush=True)  # fmt: skip
    for one in served:
        run, slower = one.run, slowness(variants[0].stage, one.run)
        told = "not timed" if slower is None else f"x{slower:.2f} of the profile's"
        offered = sum(figures.offered for figures in run.observed.values())
        print(f"{one.part:.0%}, seed {run.seed}: {offered:.1f} requests/s, yardstick {told}, "
              f"load average {run.load_average:.1f}, client {run.lag_s * 1e3:.1f} ms late at most "
              f"but for 1 %, {sum(run.errors.values())} failed")  # fmt: skip


def rows(
    variant: Variant, part: float, model: ModelName, seeds: Sequence[Comparison],
    within: dict[str, list[bool]],
) -> None:  # fmt: skip
    for name, (figure, *bars) in BARS.items():
        seen = mean(figure, [seed.observed[model] for seed in seeds])
        unit = 1.0 if name == "goodput" else 1000.0
        cells = []
        said = (
            [seed.simulated[model] for seed in seeds],
            [seed.predicted[model] for seed in seeds],
        )
        for marks, of, bar in zip(within.values(), said, bars, strict=True):
            value = mean(figure, of)
            marks.append(abs(value / seen - 1) <= bar * variant.width)
            cells.append(f"{value * unit:8.2f} {value / seen - 1:+5.0%}{' ' if marks[-1] else '*'}")
        print(f"{variant.name:38} {part:5.0%} {model:12} {name:10} {seen * unit:9.2f} "
              f"{cells[0]:>15} {cells[1]:>15}")  # fmt: skip


def mean(figure: Figure, of: Sequence[Figures]) -> float:
    known = [value for found in of if (value := figure(found)) is not None]
    return sum(known) / len(known) if known else float("nan")


if __name__ == "__main__":
    main()
