"""What `muxserve profile` measured: step tables of some models on one device, and their costs.

A share of a CPU is a whole number of threads, so its steps do not slow between two numbers of
threads: `planning_table` says so to readers that interpolate over shares.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from statistics import fmean
from types import MappingProxyType
from typing import Final

from mux_core.costmodel.table import StepRow, StepTable, step_table
from mux_core.engine import Phase
from mux_core.errors import SpecError
from mux_core.llm import ModelGeometry

CPU = "cpu"
"""The GPU type by which the cost model knows a slot of a CPU node."""
ENGINE_PATHS: Final[Mapping[str, str]] = MappingProxyType(
    {"cpu": "torch/cpu/gathered-rows-sdpa", "cuda": "torch/cuda/gathered-rows-sdpa"}
)
"""How this release's engine computes, by kind of device; a profile is of one such path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeOn:
    """Where and by what a profile was measured; it counts as measured for that alone.

    `device` names the machine's processor or GPU, `path` the engine and its attention kernels.
    `load`: processes of others that wanted a core when it began; above the number of cores the
    figures are of a busy machine. `yardstick_s`: what a fixed piece of work took while a
    unit's steps were timed; 0 where they were not.
    """

    device: str
    cores: int
    path: str
    release: str
    commit: str
    at: str
    quick: bool = False
    load: float = 0.0
    yardstick_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Seconds of one core that a process takes per step, per token of it, per request."""

    step_s: float = 0.0
    token_s: float = 0.0
    request_s: float = 0.0

    def of_step(self, tokens: float) -> float:
        """Seconds for a step that gives so many tokens."""
        return self.step_s + tokens * self.token_s

    def of_token(self, steps: float) -> float:
        """Seconds for a token of which so many steps, or what part of one, are made."""
        return steps * self.step_s + self.token_s

    def slowed(self, times: float) -> "Work":
        """The same where everything takes that many times as long."""
        return Work(step_s=self.step_s * times, token_s=self.token_s * times,
                    request_s=self.request_s * times)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCost:
    """What a unit adds to its engine's steps: seconds per step, per token of it, per request.

    Scheduler, front, wire and client are in it, as a client of an idle unit sees it: `request_s`
    is what a request waits beyond its prefill step. `scheduler` and `client` are what these two
    processes run meanwhile; on a CPU they do that on the cores of the engines. `cores_used`: part
    of the cores' time that unit and client ran while they wanted more cores than there are; an
    operating system leaves some of it idle, with work that waits for another core.
    """

    step_s: float = 0.0
    token_s: float = 0.0
    request_s: float = 0.0
    scheduler: Work = field(default_factory=Work)
    client: Work = field(default_factory=Work)
    cores_used: float = 1.0

    @property
    def arrival_s(self) -> float:
        """What a request waits before its prefill step and beyond what stands between steps."""
        return max(0.0, self.request_s - self.step_s - self.token_s)

    def idle_s(self, tokens: float) -> float:
        """Seconds after a step that gives so many tokens in which nothing of its model runs: what
        is between two steps beyond the scheduler's work, as processes take time to wake."""
        return max(0.0, self.step_s + tokens * self.token_s - self.scheduler.of_step(tokens))

    def slowed(self, times: float) -> "UnitCost":
        """The same where everything takes that many times as long."""
        return replace(self, step_s=self.step_s * times, token_s=self.token_s * times,
                       request_s=self.request_s * times, scheduler=self.scheduler.slowed(times),
                       client=self.client.slowed(times))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuWork:
    """The cores that a unit's processes share, and what runs there beside engine steps."""

    cores: int
    unit: UnitCost = field(default_factory=UnitCost)

    @property
    def usable(self) -> float:
        """Cores that run something while more than all of them are wanted."""
        return self.cores * self.unit.cores_used


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStep:
    """One side of two steps that run at once."""

    model: str
    phase: Phase
    percent: int
    batch: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTimes:
    """Seconds of a step of each side, alone and while the other side runs all the time."""

    sides: tuple[PairStep, PairStep]
    alone_s: tuple[float, float]
    together_s: tuple[float, float]

    @property
    def slowdowns(self) -> tuple[float, float]:
        """How many times as long each side's step takes beside the other's."""
        first, second = (b / a for a, b in zip(self.alone_s, self.together_s, strict=True))
        return first, second


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Steps take so many times as long, and seconds longer."""

    times: float = 1.0
    longer_s: float = 0.0

    def of(self, seconds: float) -> float:
        """How long a step of so many seconds takes."""
        return seconds * self.times + self.longer_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How much longer than on the bench steps take in a unit that serves: there a host has requests
    to hear of and tokens to tell, and others leave theirs in the caches between two steps.

    `decode`: how many times as long decodes of some batches take, in ascending order of these.
    `together`: whether other models were served meanwhile.
    """

    decode: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    prefill: Stretch = Stretch()
    together: bool = False

    def decode_times(self, batch: float) -> float:
        """How many times as long a decode of that batch takes: linear over the batch's logarithm
        between those that are known, and as the nearest one beyond."""
        above = bisect_left(self.decode, batch, key=lambda known: known[0])
        if above in (0, len(self.decode)):
            return self.decode[min(above, len(self.decode) - 1)][1]
        (low, before), (high, after) = self.decode[above - 1 : above + 1]
        return before + (after - before) * log(batch / low) / log(high / low)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """One model's measured steps on the bench, and `served`, None where no unit served it.

    `grant_s`: a step that runs nothing, there and back;
    `handoff_s`: a decode host adopting a request; `host_bytes`: memory of one host, weights and
    KV not counted."""

    name: str
    geometry: ModelGeometry
    table: StepTable
    grant_s: float
    handoff_s: float
    host_bytes: int
    served: Served | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSet:
    """All of one profile file. `gpu` is the GPU type, `left_out` what was not measured and why."""

    gpu: str
    made: MadeOn
    models: tuple[ModelProfile, ...]
    unit: UnitCost | None = None
    pairs: tuple[PairTimes, ...] = ()
    left_out: tuple[str, ...] = field(default=())

    @property
    def served(self) -> Served:
        """Of a model that no unit served: as the others on average."""
        known = [model.served for model in self.models if model.served is not None]
        if not known:
            return Served()
        batches = sorted({batch for one in known for batch, _ in one.decode})
        return Served(
            decode=tuple((batch, fmean(one.decode_times(batch) for one in known))
                         for batch in batches),
            prefill=_mean([one.prefill for one in known]),
            together=all(one.together for one in known),
        )  # fmt: skip

    def find(self, geometry: ModelGeometry) -> ModelProfile | None:
        """The profile of a model of this shape, whatever its name."""
        return next((m for m in self.models if same_shape(m.geometry, geometry)), None)


def _mean(of: Sequence[Stretch]) -> Stretch:
    return Stretch(times=fmean(one.times for one in of),
                   longer_s=fmean(one.longer_s for one in of))  # fmt: skip


def check_made(made: MadeOn, *, release: str, subject: str) -> None:
    """SpecError where a profile says nothing of the engine of this release."""
    if made.release != release:
        raise SpecError(f"{subject}: measured with release {made.release}, this is {release}; "
                        "measure again with muxserve profile")  # fmt: skip
    if made.path not in ENGINE_PATHS.values():
        raise SpecError(f"{subject}: measured on engine path {made.path}, this release has "
                        f"{', '.join(ENGINE_PATHS.values())}; measure again")  # fmt: skip


def same_shape(one: ModelGeometry, other: ModelGeometry) -> bool:
    """Whether steps of both cost the same: the longest context does not matter."""
    return replace(one, max_model_len=1) == replace(other, max_model_len=1)


def percent_of(threads: int, cores: int) -> int:
    """The share of `threads` cores."""
    return max(1, 100 * threads // cores)


def threads_of(percent: int, cores: int) -> int:
    """Threads of an engine host at a share; the same rule as the runtime's."""
    return max(1, round(cores * percent / 100))


def planning_table(found: ModelProfile, made: MadeOn, gpu: str) -> StepTable:
    """The table to interpolate: on a CPU with every step at each end of its range of shares."""
    if gpu != CPU:
        return found.table
    rows: list[StepRow] = []
    for (_, percent), cell in found.table.cells.items():
        threads = threads_of(percent, made.cores)
        for edge in _shares(threads, made.cores):
            rows.extend(replace(row, percent=edge) for row in cell)
    return step_table(found.table.model, gpu, rows)


def _shares(threads: int, cores: int) -> Iterator[int]:
    """The lowest and the highest share that gives this many threads."""
    fitting = [p for p in range(1, 101) if threads_of(p, cores) == threads]
    yield from sorted({fitting[0], fitting[-1]})
