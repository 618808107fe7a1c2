"""Runs of the simulator: one per seed, on several cores, with progress, ended early by Ctrl-C.

A run is a function of its scenario and seed alone, and results come back in the order asked for,
so how many run at once changes nothing. Ctrl-C asks the runs to stop where they are; what they
have measured by then is kept and marked. A second Ctrl-C ends at once.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mux_cli.simulate_arguments import Traffic, Window
from mux_core.costmodel.table import StepTable
from mux_core.placement import Placement
from mux_core.planners.strategies import make_estimator, make_planner
from mux_core.planning import PlacementProblem, best_plan
from mux_core.simulator.kv import kv_rule
from mux_core.simulator.policies import policy_factory
from mux_core.simulator.record import RunRecord
from mux_core.simulator.replanning import Replan
from mux_core.simulator.run import simulate
from mux_core.simulator.settings import Settings
from mux_core.simulator.workloads import arrivals
from mux_core.units import ModelName

QUIET_S: Final = 2.0
"""Runs that take longer say how far they are."""
LOOK_S: Final = 0.2
SAY_S: Final = 5.0
"""How often, where standard error is no terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replanning:
    """How a plan is made again during a run. `oracle`: with the true rates, not measured ones."""

    strategy: str
    estimator: str
    headroom: float
    switches: Mapping[str, bool]
    every_s: float
    oracle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One system under one traffic: everything a run needs but its seed."""

    label: str
    problem: PlacementProblem
    placement: Placement
    tables: Mapping[str, StepTable]
    traffic: Traffic
    window: Window
    policy: str = "adbs"
    switches: Mapping[str, bool] = field(default_factory=dict)
    kv: str = "estimated"
    replanning: Replanning | None = None
    check: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One run to do."""

    scenario: Scenario
    seed: int


def run_one(job: Job, *, told: Callable[[float], None], stop: Callable[[], bool]) -> RunRecord:
    """One run. The same job gives the same record in any process."""
    scenario, window = job.scenario, job.scenario.window
    traffic = scenario.traffic
    settings = Settings(
        seconds=window.seconds + window.tail, warmup=window.warmup, tables=scenario.tables,
        kv=kv_rule(scenario.kv), replan=_replan(scenario), check=scenario.check,
        on_progress=told, stop=stop,
    )  # fmt: skip
    return simulate(
        scenario.problem,
        scenario.placement,
        traffic.trace or arrivals(traffic.streams, seed=job.seed, until=window.until),
        policy_factory(scenario.policy, scenario.switches),
        settings,
    )


def _replan(scenario: Scenario) -> Replan | None:
    asked = scenario.replanning
    if asked is None:
        return None
    costs = make_estimator(asked.estimator, headroom=asked.headroom, tables=scenario.tables)
    planner = make_planner(asked.strategy, estimator=costs, switches=asked.switches)

    def known(now: float) -> Mapping[ModelName, float]:
        return {s.model: s.rate * s.curve.at(now) for s in scenario.traffic.streams}

    return Replan(
        plan=lambda problem: best_plan(planner, problem),
        every_s=asked.every_s,
        known=known if asked.oracle else None,
    )


def run_all(jobs: Sequence[Job], *, at_once: int | None = None) -> list[RunRecord | None]:
    """Records in the order of `jobs`; None for those that Ctrl-C kept from beginning."""
    cores = min(len(jobs), at_once or len(os.sched_getaffinity(0)))
    with _interruptible() as stop, _Progress(jobs) as progress:
        if cores <= 1:
            return list(_one_by_one(jobs, stop, progress))
        return _together(jobs, cores, stop, progress)


def _one_by_one(
    jobs: Sequence[Job], stop: threading.Event, progress: "_Progress"
) -> Iterator[RunRecord | None]:
    for index, job in enumerate(jobs):
        if stop.is_set():
            yield None
            continue

        def told(now: float, index: int = index) -> None:
            progress.clocks[index] = now

        yield run_one(job, told=told, stop=stop.is_set)
        told(job.scenario.window.until)


def _together(
    jobs: Sequence[Job], cores: int, stop: threading.Event, progress: "_Progress"
) -> list[RunRecord | None]:
    context = multiprocessing.get_context("spawn")
    clocks, stopped = context.Array("d", len(jobs), lock=False), context.Value("b", 0, lock=False)
    with ProcessPoolExecutor(
        cores, mp_context=context, initializer=_begin_worker, initargs=(clocks, stopped)
    ) as pool:
        futures = [pool.submit(_work, index, job) for index, job in enumerate(jobs)]
        while not all(future.done() for future in futures):
            stopped.value = stop.is_set()
            progress.clocks[:] = list(clocks)
            time.sleep(LOOK_S)
        return [future.result() for future in futures]


_shared: dict[str, Any] = {}


def _begin_worker(clocks: Any, stopped: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells the whole group
    _shared.update(clocks=clocks, stopped=stopped)


def _work(index: int, job: Job) -> RunRecord | None:
    def told(now: float) -> None:
        _shared["clocks"][index] = now

    def stop() -> bool:
        return bool(_shared["stopped"].value)

    if stop():
        return None
    found = run_one(job, told=told, stop=stop)
    told(job.scenario.window.until)
    return found


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the next one interrupts."""
    stop = threading.Event()

    def asked(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, asked)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Progress:
    """Shows on standard error how far runs are that take longer than `QUIET_S`."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.clocks = [0.0] * len(jobs)
        self._jobs = jobs
        self._done = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> "_Progress":
        self._teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._teller.join()

    def _tell(self) -> None:
        if self._done.wait(QUIET_S):
            return
        if sys.stderr.isatty():
            self._bars()
            return
        while not self._done.wait(SAY_S):
            passed = sum(self.clocks)
            whole = sum(job.scenario.window.until for job in self._jobs)
            print(f"simulated {passed:.0f} of {whole:.0f} s in {len(self._jobs)} runs",
                  file=sys.stderr, flush=True)  # fmt: skip

    def _bars(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            tasks: list[TaskID] = [
                bars.add_task(f"{job.scenario.label}, seed {job.seed}",
                              total=job.scenario.window.until, visible=False)
                for job in self._jobs
            ]  # fmt: skip
            while not self._done.wait(LOOK_S):
                for task, clock, job in zip(tasks, self.clocks, self._jobs, strict=True):
                    begun = 0 < clock < job.scenario.window.until
                    bars.update(task, completed=clock, visible=begun)
