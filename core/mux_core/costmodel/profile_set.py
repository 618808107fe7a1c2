"""What `muxserve profile` measured: step tables of some models on one device, and their costs.

A share of a CPU is a whole number of threads, so its steps do not slow between two numbers of
threads: `planning_table` says so to readers that interpolate over shares.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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


CROWD: Final = 3
"""Hosts that run together when it is measured what a crowd costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeOn:
    """Where and by what a profile was measured; it counts as measured for that alone.

    `device` names the machine's processor or GPU, `path` the engine and its attention kernels.
    `load`: processes of others that wanted a core when it began; above the number of cores the
    figures are of a busy machine. `yardstick_s`: what a fixed piece of work took meanwhile; 0 where
    that was not timed.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCost:
    """What a unit adds to its engine's steps: seconds per step, per token of it, per request.

    Scheduler, front, wire and client are in it, as a client of an idle unit sees it: `request_s`
    is what a request waits beyond its prefill step. `scheduler` and `client` are what these two
    processes run meanwhile; on a CPU they do that on the cores of the engines. There a step also
    takes longer where other hosts ran since its last one, as its caches are cold: by `crowded_s`
    and by `crowded_part` of its own time where `CROWD` hosts take turns.
    """

    step_s: float = 0.0
    token_s: float = 0.0
    request_s: float = 0.0
    scheduler: Work = field(default_factory=Work)
    client: Work = field(default_factory=Work)
    crowded_s: float = 0.0
    crowded_part: float = 0.0

    def crowded(self, seconds: float, others: float) -> float:
        """Seconds that a step takes more where so many other hosts stepped since the last one, but
        for sharing cores with them."""
        return (self.crowded_s + self.crowded_part * seconds) * min(1.0, others / (CROWD - 1))

    @property
    def arrival_s(self) -> float:
        """What a request waits before its prefill step and beyond what stands between steps."""
        return max(0.0, self.request_s - self.step_s - self.token_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuWork:
    """The cores that a unit's processes share, and what runs there beside engine steps."""

    cores: int
    unit: UnitCost = field(default_factory=UnitCost)


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
class ModelProfile:
    """One model's measured steps; `grant_s`: a step that runs nothing, there and back;
    `handoff_s`: a decode host adopting a request; `host_bytes`: memory of one host, weights and
    KV not counted."""

    name: str
    geometry: ModelGeometry
    table: StepTable
    grant_s: float
    handoff_s: float
    host_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSet:
    """All of one profile file. `gpu` is the GPU type, `left_out` what was not measured and why."""

    gpu: str
    made: MadeOn
    models: tuple[ModelProfile, ...]
    unit: UnitCost | None = None
    pairs: tuple[PairTimes, ...] = ()
    left_out: tuple[str, ...] = field(default=())

    def find(self, geometry: ModelGeometry) -> ModelProfile | None:
        """The profile of a model of this shape, whatever its name."""
        return next((m for m in self.models if same_shape(m.geometry, geometry)), None)


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
