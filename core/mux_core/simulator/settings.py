"""What a run is asked; see `run` for what it then does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

from mux_core.costmodel.interference import DEFAULT_INTERFERENCE, Interference
from mux_core.costmodel.profile_set import CpuWork
from mux_core.costmodel.table import StepTable
from mux_core.errors import SpecError
from mux_core.simulator.kv import KvRule, estimated_kv
from mux_core.simulator.replanning import Replan


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run is asked. Times in seconds of the virtual clock.

    The clock stops at `warmup` + `seconds`; figures are of the `seconds`. `interference` None: no
    step slows another. `cpu`: the cores that all steps of a node share, where it is a CPU. `kv`:
    how much KV a unit has. `unit_bytes`: size of a head unit; `block_tokens`: tokens per row of
    LLMs known by their profile alone. `guaranteed`: part of the KV the plan guarantees a member
    that nobody may borrow. `max_queue`: waiting requests per replica beyond which one is rejected
    (None: no bound). `tables`: measured profiles beside the shipped. `spans_s`: how much of the
    window the timeline covers. `check`: assert the books at every event. `replan`: plan again
    during the run. `on_progress` hears the clock now and then; `stop` ends the run early.
    """

    seconds: float = 600.0
    warmup: float = 60.0
    interference: Interference | None = DEFAULT_INTERFERENCE
    cpu: CpuWork | None = None
    kv: KvRule = estimated_kv
    unit_bytes: int = 8192
    block_tokens: int = 32
    guaranteed: float = 1.0
    max_queue: int | None = None
    tables: Mapping[str, StepTable] = field(default_factory=dict)
    sample_s: float = 1.0
    spans_s: float = 5.0
    check: bool = False
    replan: Replan | None = None
    on_progress: Callable[[float], None] | None = None
    stop: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("sample_s", self.sample_s)):
            if not 0 < value < inf:
                raise SpecError(f"simulation: {name} is {value}; use a number above 0")
        if not 0 <= self.warmup < inf:
            raise SpecError(f"simulation: warmup is {self.warmup} s; at least 0")

    @property
    def until(self) -> float:
        return self.warmup + self.seconds
