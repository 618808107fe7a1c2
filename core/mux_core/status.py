"""What the operator says about an object: conditions with closed reasons, and figures.

A status is a value; a change makes a new one. `mux_core.reasons` says which reasons exist and
computes the conditions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mux_core.llm import ModelGeometry
from mux_core.units import Bytes, ModelName, NodeName, Percent, UnitId


class Truth(StrEnum):
    """The status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition; `since` is when `status` last changed, seconds of the Unix epoch."""

    type: str
    status: Truth
    reason: str
    message: str = ""
    observed_generation: int = 0
    since: float = 0.0
    permanent: bool = False

    @property
    def holds(self) -> bool:
        return self.status is Truth.TRUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What an inspect run read from a checkpoint, or why it could not; of one `source` key.

    With an `error_reason` (a reason of ModelResolved) there is no geometry.
    """

    source: str
    geometry: ModelGeometry | None = None
    weight_bytes: Bytes = Bytes(0)
    error_reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementStatus:
    """Where one replica is and how it is."""

    unit: UnitId
    pod: str
    node: NodeName
    gpus: tuple[int, ...]
    tensor: int
    prefill_percent: Percent
    decode_percent: Percent
    kv_bytes: Bytes
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredDemand:
    """Measured arrivals per second; `as_of` in seconds of the Unix epoch.

    `lasting` is the same over some minutes. `age_s`: for how long it has been measured, which says
    how far chance may have moved it; one read from a status has settled. `waiting`: requests in
    queues.
    """

    rate: float
    source: str
    as_of: float
    lasting: float = 0.0
    age_s: float = 3600.0
    waiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one LLM gets from all its replicas, predicted or observed; None: not known.

    Rates in requests/s, times in s; `rate` is what arrives, `attainment` the share of requests
    within the SLO, `kv_bytes` what is held. `as_of` is when it was observed, seconds of the Unix
    epoch; `costs` what a prediction's step times stand on.
    """

    as_of: float = 0.0
    rate: float | None = None
    served: float | None = None
    ttft_mean_s: float | None = None
    ttft_p99_s: float | None = None
    tpot_mean_s: float | None = None
    tpot_p99_s: float | None = None
    attainment: float | None = None
    kv_bytes: int | None = None
    costs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmStatus:
    """The status of one LLMDeployment. `state` and `unit` are for people and their columns.

    `resolved` is of the source asked for now; `previous` is the last good one, kept while a
    running replica still serves it.
    """

    observed_generation: int = 0
    served_name: str = ""
    url: str = ""
    port: int = 0
    state: str = ""
    unit: str = ""
    replicas: int = 0
    ready_replicas: int = 0
    conditions: tuple[Condition, ...] = ()
    placements: tuple[PlacementStatus, ...] = ()
    demand: MeasuredDemand | None = None
    predicted: Figures | None = None
    observed: Figures | None = None
    resolved: Resolved | None = None
    previous: Resolved | None = None

    def condition(self, kind: str) -> Condition | None:
        return next((c for c in self.conditions if c.type == kind), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUnitStatus:
    """One unit of the pool, in short."""

    unit: UnitId
    node: NodeName
    gpus: tuple[int, ...]
    models: tuple[ModelName, ...]
    state: str
    pod: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """The status of one GPUPool; `inventory` is GPUs by node."""

    observed_generation: int = 0
    gpus: int = 0
    free_gpus: int = 0
    inventory: Mapping[NodeName, int] = field(default_factory=dict)
    units: tuple[PoolUnitStatus, ...] = ()
    active_plan: str = ""
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        return next((c for c in self.conditions if c.type == kind), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """All statuses of one pool after a cycle; only what differs from the last needs writing."""

    llms: Mapping[ModelName, LlmStatus] = field(default_factory=dict)
    pool: PoolStatus | None = None
