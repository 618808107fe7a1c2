"""What a whole unit adds to its engines' steps: measured on a unit of the profiled models.

The unit is `python -m mux_runtime unit`, asked over HTTP from this machine, so on a CPU client,
front, scheduler and engines share the cores, as they do under load. Each model is asked alone,
then all at once; what is told apart by processes is told by the seconds of a core that each has
run, and on a virtual machine by what was stolen from it meanwhile.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Final, Self

from scipy.optimize import nnls

from mux_core.costmodel.profile_set import UnitCost, Work
from mux_core.engine import Phase
from mux_core.errors import PeerError
from mux_runtime.core_time import CoreTime
from mux_runtime.profiling.client import Marks, open_session, stream
from mux_runtime.profiling.probe_unit import ProbeUnit, core_seconds
from mux_runtime.profiling.steps import spread
from mux_runtime.profiling.yardstick import Yardstick

OUTPUTS: Final = 60
PROMPT: Final = 64
SHORT_PROMPT: Final = 16
LONG_PROMPT: Final = 192
MOST_TOKENS: Final = LONG_PROMPT + OUTPUTS
"""More than any stream has."""
CONTEXT: Final = PROMPT + OUTPUTS // 2
"""Mean context of streams of so many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Streams of one model at once, tokens of each, and how often again; `prompt`: mean tokens."""

    streams: int
    outputs: int
    rounds: int
    prompt: int = PROMPT


SINGLE: Final = Load(streams=1, outputs=OUTPUTS, rounds=5)
LONG: Final = (SINGLE, Load(streams=8, outputs=OUTPUTS, rounds=4),
               Load(streams=32, outputs=OUTPUTS, rounds=2))  # fmt: skip
"""Steps of few and of many sequences."""
CROWD: Final = Load(streams=64, outputs=OUTPUTS, rounds=2)
"""Steps of so many, for all models at once: there always is more to run than there are cores."""
LOADS: Final = (*LONG, Load(streams=1, outputs=3, rounds=20, prompt=SHORT_PROMPT),
                Load(streams=1, outputs=3, rounds=20, prompt=LONG_PROMPT),
                Load(streams=8, outputs=3, rounds=15))  # fmt: skip
"""Each has more of another thing: steps, tokens, requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSteps:
    """Steps that a model's engine hosts ran for a load, and their seconds of a core, by phase."""

    load: Load
    count: Mapping[Phase, int]
    core_s: Mapping[Phase, float]

    @property
    def requests(self) -> int:
        return self.load.streams * self.load.rounds

    @property
    def tokens(self) -> int:
        return self.requests * self.load.outputs

    @property
    def batch(self) -> float:
        """Mean of the decode steps: the first token of a request is of its prefill."""
        return (self.tokens - self.requests) / self.count[Phase.DECODE]

    def step_s(self, phase: Phase) -> float:
        """Mean seconds of a core of a step."""
        return self.core_s[phase] / self.count[phase]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a unit did for a load of some models, and seconds of a core that others ran for it.

    `lasted_s`: by a clock on the wall. Means: `decoding_s`, of a round, from its first token to its
    last; `ttft_s`, of its streams.
    """

    load: Load
    hosts: Mapping[str, HostSteps]
    lasted_s: float
    scheduler_s: float
    client_s: float
    decoding_s: float
    ttft_s: float

    @property
    def done(self) -> tuple[int, int, int]:
        """(steps, tokens, requests)."""
        hosts = self.hosts.values()
        return (sum(sum(one.count.values()) for one in hosts), sum(one.tokens for one in hosts),
                sum(one.requests for one in hosts))  # fmt: skip

    @property
    def cores(self) -> float:
        """How many of them ran it, on average."""
        engines = sum(sum(one.core_s.values()) for one in self.hosts.values())
        return (engines + self.scheduler_s + self.client_s) / self.lasted_s

    @property
    def alone(self) -> HostSteps:
        """Steps of the only model that was asked."""
        (hosts,) = self.hosts.values()
        return hosts

    @property
    def between_s(self) -> float:
        """Mean seconds between two decode steps of the only model: there always is a next one in a
        round."""
        turn_s = self.load.rounds * self.decoding_s / self.alone.count[Phase.DECODE]
        return turn_s - self.alone.step_s(Phase.DECODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSteps:
    """Mean seconds of a core of a model's steps in the unit: decodes of these mean batches and of
    `CONTEXT`, and prefills of one prompt of so many tokens."""

    batches: Sequence[float]
    decode_s: Sequence[float]
    prompts: Sequence[int]
    prefill_s: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTimes:
    """What a unit costs, by model how long steps took in it, and the yardstick meanwhile."""

    cost: UnitCost
    steps: Mapping[str, ServedSteps]
    yardstick_s: float


async def unit_times(unit: ProbeUnit, speed: Yardstick, *, cores: int) -> UnitTimes:
    """Asks one model after another, which tells what is between steps; then all at once, which
    tells how long steps take, and what scheduler and client run."""
    models = list(unit.models)
    for model in models:
        await _ask(unit, model, SINGLE)
    began = time.monotonic()
    alone = [await _ran(unit, [model], load) for model in models for load in LOADS]
    together: list[Ran] = []
    if len(models) > 1:
        began = time.monotonic()
        together = [await _ran(unit, models, load) for load in (*LOADS, CROWD)]
    return UnitTimes(
        cost=unit_cost(alone, together, cores=cores),
        steps={model: served_steps([one.hosts[model] for one in together or alone
                                    if model in one.hosts]) for model in models},
        yardstick_s=speed.mean(began, time.monotonic()),
    )  # fmt: skip


def unit_cost(alone: Sequence[Ran], together: Sequence[Ran], *, cores: int) -> UnitCost:
    """What is between steps, as clients of each model alone saw it; and, where there are several,
    what it takes to serve all of them at once."""
    single = [one for one in alone if one.load == SINGLE]
    long = [one for one in alone if one.load in LONG]
    (step_s, token_s), _ = nnls([(1.0, one.alone.batch) for one in long],
                                [one.between_s for one in long])  # fmt: skip
    arrival_s = fmean(one.ttft_s - one.alone.step_s(Phase.PREFILL) for one in single)
    crowded = [one.cores / cores for one in together if one.load == CROWD]
    return UnitCost(step_s=float(step_s), token_s=float(token_s), request_s=max(0.0, arrival_s),
                    scheduler=_work(together or alone, lambda found: found.scheduler_s),
                    client=_work(together or alone, lambda found: found.client_s),
                    cores_used=min([1.0, *crowded]))  # fmt: skip


def _work(ran: Sequence[Ran], seconds: Callable[[Ran], float]) -> Work:
    costs, _ = nnls([one.done for one in ran], [seconds(one) for one in ran])
    step_s, token_s, request_s = map(float, costs)
    return Work(step_s=step_s, token_s=token_s, request_s=request_s)


def served_steps(ran: Sequence[HostSteps]) -> ServedSteps:
    """Of one model."""
    long = [one for one in ran if one.load in (*LONG, CROWD)]
    single = [one for one in ran if one.load.streams == 1]
    return ServedSteps(
        batches=[one.batch for one in long],
        decode_s=[one.step_s(Phase.DECODE) for one in long],
        prompts=[one.load.prompt for one in single],
        prefill_s=[one.step_s(Phase.PREFILL) for one in single],
    )


async def _ran(unit: ProbeUnit, models: Sequence[str], load: Load) -> Ran:
    """The load of each of these models, all at once."""
    before = {model: await SoFar.of(unit, model) for model in models}
    scheduler, client = core_seconds(unit.scheduler), time.process_time()
    machine, began = CoreTime.now(), time.monotonic()
    asked = await asyncio.gather(*(_ask(unit, model, load) for model in models))
    lasted_s, taken = time.monotonic() - began, CoreTime.now().since(machine).taken
    scheduler_after, client_after = core_seconds(unit.scheduler), time.process_time()
    hosts = {model: (await SoFar.of(unit, model)).since(before[model], load) for model in models}
    rounds = list(chain.from_iterable(asked))
    return Ran(
        load=load, hosts=hosts, lasted_s=lasted_s,
        scheduler_s=(scheduler_after - scheduler) * taken, client_s=(client_after - client) * taken,
        decoding_s=fmean(_decoding_s(marks) for marks in rounds),
        ttft_s=fmean(one.first - one.sent for marks in rounds for one in marks))  # fmt: skip


@dataclass(frozen=True, slots=True)
class SoFar:
    """Steps of a model's hosts and seconds that they ran; and what all cores did."""

    count: Mapping[Phase, int]
    ran_s: Mapping[Phase, float]
    machine: CoreTime

    @classmethod
    async def of(cls, unit: ProbeUnit, model: str) -> Self:
        return cls(await unit.steps(model), unit.host_seconds(model), CoreTime.now())

    def since(self, before: Self, load: Load) -> HostSteps:
        taken = self.machine.since(before.machine).taken
        return HostSteps(load=load,
                         count={phase: self.count[phase] - before.count[phase] for phase in Phase},
                         core_s={phase: (self.ran_s[phase] - before.ran_s[phase]) * taken
                                 for phase in Phase})  # fmt: skip


def _decoding_s(marks: Sequence[Marks]) -> float:
    return max(one.last for one in marks) - min(one.first for one in marks)


async def _ask(unit: ProbeUnit, model: str, load: Load) -> list[list[Marks]]:
    """The streams of each round."""
    lengths = spread(load.prompt, load.streams, longest=MOST_TOKENS)
    rounds: list[list[Marks]] = []
    async with open_session() as session:
        for _ in range(load.rounds):
            rounds.append(await asyncio.gather(
                *(stream(session, unit.url, unit.models[model], list(range(10, 10 + length)),
                         load.outputs)
                  for length in lengths)
            ))  # fmt: skip
    for one in chain.from_iterable(rounds):
        if not one.whole:
            raise PeerError(f"probe unit: {one.error}")
    return rounds
