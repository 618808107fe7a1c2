"""Runs of systems on seeded arrivals, the same for every system, and the arguments they take."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from systems import System

from mux_core.costmodel.interference import DEFAULT_INTERFERENCE, Interference
from mux_core.llm import Llm
from mux_core.simulator.adbs_policy import AdbsPolicy, adbs
from mux_core.simulator.arrivals import Arrival
from mux_core.simulator.latency_base import latency_bases
from mux_core.simulator.lengths import LengthShape
from mux_core.simulator.measures import RunTally, tally
from mux_core.simulator.policies import policy_factory
from mux_core.simulator.policy import PolicyFactory
from mux_core.simulator.record import RunRecord
from mux_core.simulator.run import Settings, simulate
from mux_core.simulator.workloads import Stream, arrivals, streams_of

TAIL_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Seconds before measuring, measured, and after it under the same load; seeds 1 to `seeds`."""

    seconds: float = 600.0
    warmup: float = 60.0
    tail: float = TAIL_S
    seeds: int = 5

    @property
    def until(self) -> float:
        return self.warmup + self.seconds + self.tail


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What arrives at every system alike: the LLMs' rates times `load`, lengths of one shape."""

    llms: tuple[Llm, ...]
    load: float = 1.0
    shape: LengthShape = LengthShape.SHAREGPT

    @property
    def streams(self) -> tuple[Stream, ...]:
        return streams_of(self.llms, load=self.load, shape=self.shape)


@dataclass(slots=True)
class Stopwatch:
    """CPU seconds and events of all runs of this process, for the line below a table."""

    cpu: float = 0.0
    events: int = 0
    runs: int = 0

    def timed(self, run: Callable[[], RunRecord]) -> RunRecord:
        """The run's record, its cost noted."""
        begun = time.process_time()
        record = run()
        self.cpu += time.process_time() - begun
        self.events += record.events
        self.runs += 1
        return record


spent = Stopwatch()


def run(
    system: System,
    traffic: Traffic,
    window: Window,
    seed: int,
    *,
    switches: Mapping[str, bool] | None = None,
    interference: Interference | None = DEFAULT_INTERFERENCE,
    spans_s: float = 0.0,
) -> RunRecord:
    """One run of one seed; its timeline covers `spans_s` of the window."""
    settings = Settings(
        seconds=window.seconds + window.tail,
        warmup=window.warmup,
        kv=system.kv,
        interference=interference,
        spans_s=spans_s,
    )
    requests = arrivals(traffic.streams, seed=seed, until=window.until)
    factory = _policy(system, switches or {})
    return spent.timed(
        lambda: simulate(system.problem, system.placement, requests, factory, settings)
    )


def run_arrivals(system: System, requests: Iterator[Arrival], *, seconds: float) -> RunRecord:
    """One run of given requests from an empty start."""
    settings = Settings(seconds=seconds, warmup=0.0, kv=system.kv, sample_s=60.0, spans_s=0.0)
    factory = _policy(system, {})
    return spent.timed(
        lambda: simulate(system.problem, system.placement, requests, factory, settings)
    )


def _policy(system: System, switches: Mapping[str, bool]) -> PolicyFactory:
    percent = system.sm_percent
    if percent is None:
        return policy_factory(system.policy, switches)
    return lambda setting: AdbsPolicy(limits=replace(adbs(setting).limits, sm_percent=percent))


@dataclass(frozen=True, slots=True)
class Measured:
    """A system and what its runs were worth, in order of the seeds."""

    system: System
    runs: Sequence[RunTally] = field(repr=False)


def measure(
    system: System, traffic: Traffic, window: Window, *, switches: Mapping[str, bool] | None = None,
    interference: Interference | None = DEFAULT_INTERFERENCE,
) -> Measured:  # fmt: skip
    """All seeds of one system."""
    bases = latency_bases(traffic.llms, system.problem.nodes, {})
    found = []
    for seed in range(1, window.seeds + 1):
        record = run(system, traffic, window, seed, switches=switches, interference=interference)
        found.append(tally(record, seconds=window.seconds, bases=bases))
    return Measured(system, found)


def window_arguments(parser: argparse.ArgumentParser, **defaults: float) -> None:
    """Adds how long and how often; output arguments too."""
    standard = Window()
    for name, text in (
        ("seconds", "measured window"),
        ("warmup", "seconds before it"),
        ("tail", "seconds of load after it"),
    ):
        parser.add_argument(
            f"--{name}", type=float, default=defaults.get(name, getattr(standard, name)), help=text
        )
    parser.add_argument("--seeds", type=int, default=int(defaults.get("seeds", standard.seeds)))
    parser.add_argument("--json", metavar="FILE", help="also write the figures")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table")


def window_of(args: argparse.Namespace) -> Window:
    return Window(seconds=args.seconds, warmup=args.warmup, tail=args.tail, seeds=args.seeds)
