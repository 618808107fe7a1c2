"""One `muxserve up` with three models against three servers with one model each: goodput ratio.

    python benchmarks/bench_up_vs_separate.py [--rates 2 4 8] [--repeat 3]

The same open-loop requests (Poisson, seeded) go to both, skewed over the models. Together: one unit
of the whole memory. Separate: three `muxserve up`, each with a third of the memory and of the
percent. On a CPU a percent bounds what the scheduler grants at once and throttles nothing: each
separate server may use the cores that the others leave idle, so the baseline is favoured in
compute; what is divided for good is memory. Measure on a quiet machine: a unit that runs one step
at a time gets one process's part of a busy one, three servers get three (the load average, ours
included, is printed with each figure). Goodput: requests per second whose whole answer came
within `--scale` times the time one such request takes alone (longest of 5, measured together).
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from load import Ask, Fate, run_load
from mux_cli.demo_files import write_manifests
from mux_cli.tiny_models import DEMO, write_demo
from up_server import UpServer, up_on

SKEW = (0.8, 0.1, 0.1)
MODELS = sorted(DEMO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line said."""

    rates: tuple[float, ...]
    repeat: int
    seconds: float
    scale: float
    memory_mib: int
    prompt: int
    output: int


def main() -> None:
    settings = read_settings()
    with tempfile.TemporaryDirectory(prefix="mux-bench-") as folder:
        models = write_demo(Path(folder) / "models")
        print(f"{settings}\nskew {dict(zip(MODELS, SKEW, strict=True))}", flush=True)
        found: dict[tuple[str, float], list[float]] = {}
        limit_s = 0.0
        for repetition in range(settings.repeat):
            # The order alternates, so that a drift of the machine does not favour one of them.
            for kind in ("together", "separate")[:: 1 if repetition % 2 == 0 else -1]:
                where = Path(folder) / f"{kind}-{repetition}"
                with servers(kind, where, models, settings) as urls:
                    if not limit_s:
                        limit_s = settings.scale * alone_s(urls, settings)
                        print(f"a request counts when answered within {limit_s:.2f} s", flush=True)
                    for rate in settings.rates:
                        good = goodput(urls, settings, rate, repetition, limit_s)
                        found.setdefault((kind, rate), []).append(good)
                        print(f"  {repetition + 1} {kind:9} offered {rate:5.1f}/s: goodput "
                              f"{good:5.2f}/s (load {os.getloadavg()[0]:.1f})",
                              flush=True)  # fmt: skip
        summary(found, settings)


def read_settings() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--scale", type=float, default=8.0)
    parser.add_argument("--memory", type=int, default=60, help="MiB of the slot, for all three")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--output", type=int, default=48, help="tokens")
    args = parser.parse_args()
    return Settings(rates=tuple(args.rates), repeat=args.repeat, seconds=args.seconds,
                    scale=args.scale, memory_mib=args.memory, prompt=args.prompt,
                    output=args.output)  # fmt: skip


@contextlib.contextmanager
def servers(
    kind: str, folder: Path, models: Mapping[str, Path], settings: Settings
) -> Iterator[dict[str, str]]:
    """The URL of every model, served together or each by its own server."""
    with contextlib.ExitStack() as stack:
        urls: dict[str, str] = {}
        started: list[tuple[Sequence[str], UpServer]] = []
        groups = [MODELS] if kind == "together" else [[name] for name in MODELS]
        for number, names in enumerate(groups):
            manifests = write_manifests(
                folder / f"m{number}", {name: models[name] for name in names},
                memory=f"{settings.memory_mib // len(groups)}Mi",
            )  # fmt: skip
            if kind == "separate":
                third(manifests)
            started.append((names, stack.enter_context(up_on(manifests, folder / f"d{number}"))))
        for names, server in started:
            urls.update(dict.fromkeys(names, server.wait_ready()))
        yield urls


def third(manifests: Path) -> None:
    """A third of the percent for the one model there."""
    for file in manifests.glob("tiny-*.yaml"):
        file.write_text(file.read_text() + "  sharing:\n    maxComputePercent: 33\n")


def requests(settings: Settings, rate: float, seed: int) -> list[Ask]:
    """Poisson arrivals for `seconds`, models drawn by the skew."""
    draw, at, asks = Random(seed), 0.0, []
    while (at := at + draw.expovariate(rate)) < settings.seconds:
        prompt = tuple(draw.randrange(5, 2000) for _ in range(settings.prompt))
        (model,) = draw.choices(MODELS, SKEW)
        asks.append(Ask(model=model, prompt=prompt, max_tokens=settings.output, delay_s=at,
                        ignore_eos=True))  # fmt: skip
    return asks


def run(urls: Mapping[str, str], asks: Sequence[Ask]) -> list[Fate]:
    """Each request to its model's server, all at their moments."""

    async def everywhere() -> list[Fate]:
        by_url: dict[str, list[Ask]] = {}
        for ask in asks:
            by_url.setdefault(urls[ask.model], []).append(ask)
        done = await asyncio.gather(*(run_load(url, some) for url, some in by_url.items()))
        return [fate for fates in done for fate in fates]

    return asyncio.run(everywhere())


def alone_s(urls: Mapping[str, str], settings: Settings) -> float:
    """The longest of five requests, one at a time, to each model."""
    longest = 0.0
    for model in MODELS:
        for number in range(6):
            prompt = tuple(range(5 + number, 5 + number + settings.prompt))
            ask = Ask(model=model, prompt=prompt, max_tokens=settings.output, ignore_eos=True)
            (fate,) = run(urls, [ask])
            if number:  # the first one warms up
                longest = max(longest, fate.total_s)
    return longest


def goodput(
    urls: Mapping[str, str], settings: Settings, rate: float, repetition: int, limit_s: float
) -> float:
    """Requests per second that were whole and in time."""
    fates = run(urls, requests(settings, rate, seed=1000 * repetition + int(10 * rate)))
    good = [f for f in fates if not f.broken and f.total_s <= limit_s]
    return len(good) / settings.seconds


def summary(found: Mapping[tuple[str, float], list[float]], settings: Settings) -> None:
    print("\noffered/s   together   separate      ratio   (medians, ratio min to max)")
    for rate in settings.rates:
        one, three = found["together", rate], found["separate", rate]
        ratios = sorted(a / max(b, 1e-9) for a, b in zip(one, three, strict=True))
        medians = [statistics.median(values) for values in (one, three, ratios)]
        cells = "   ".join(f"{value:8.2f}" for value in medians)
        print(f"{rate:9.1f}   {cells}   {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
