"""Everything one decision about one pool may look at, `now` included; immutable.

An *observation* is what the cluster door saw: objects, records and carriers. A *snapshot* adds
what units and gateways told by gRPC and the demand derived from it. Neither is ever refreshed.

A unit has a *record* (its spec as last written down: a ConfigMap, a file) and, while it runs, a
*carrier* (what carries it out: a pod, a process tree). The record is written first, so a carrier
whose incarnation is not the record's is never started twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from mux_core.placement import GpuGroup, GpuNode
from mux_core.routes import RouteTable
from mux_core.specs import LlmSpec, PoolKey, PoolSpec
from mux_core.status import Figures, LlmStatus, MeasuredDemand, PoolStatus, Resolved
from mux_core.units import ModelName, NodeName, UnitId
from mux_core.unitspec import UnitSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolObject:
    """A GPUPool as it is: what is asked (or why it cannot be read) and what we last said."""

    key: PoolKey
    uid: str
    generation: int
    spec: PoolSpec
    spec_error: str = ""
    status: PoolStatus = field(default_factory=PoolStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmObject:
    """An LLMDeployment as it is.

    `spec` is None when the manifest cannot be read (`spec_error` says why); with a `spec_error`
    it is the last one known, and `pool` is what the manifest seems to name. `path` is the
    checkpoint folder as a unit of this door sees it, empty when this door cannot reach the
    source (`source_error`: why and the fix). `created_at` decides who keeps a contested name.
    """

    name: ModelName
    uid: str
    generation: int
    spec: LlmSpec | None
    created_at: float = 0.0
    spec_error: str = ""
    path: str = ""
    source_error: str = ""
    pool: str = ""
    status: LlmStatus = field(default_factory=LlmStatus)


class CarrierState(StrEnum):
    """How far a unit's pod or process tree is."""

    PENDING = "Pending"
    RUNNING = "Running"
    STOPPING = "Stopping"
    DEAD = "Dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitAddress:
    """Where a running unit answers; ports as in the design of processes and doors."""

    host: str
    http: int = 8000
    internal: int = 8001
    metrics: int = 8080
    control: int = 9090


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRecord:
    """A unit as last written down. `group` is the slots it occupies in the inventory."""

    unit: UnitId
    group: GpuGroup
    spec: UnitSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """The pod or process tree of one incarnation of a unit.

    `claims`: what it can read (None: everything this machine can). `node` may differ from the
    planned one before binding. `serving` and `draining` are the models it is labelled with.
    """

    unit: UnitId
    incarnation: int
    name: str
    state: CarrierState
    node: str = ""
    address: UnitAddress | None = None
    claims: frozenset[str] | None = None
    serving: frozenset[ModelName] = frozenset()
    draining: frozenset[ModelName] = frozenset()
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """An inspect run: under way (no `result`, `message` says what it waits for) or ended."""

    model: ModelName
    source: str
    result: Resolved | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class GatewayAddress:
    """Where one gateway process takes route tables (gRPC)."""

    name: str
    host: str
    control: int = 9090


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """A plan already written down, by revision. `waits`: for approval, nothing of it was done."""

    revision: int
    inputs_hash: str
    name: str = ""
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the door saw of one pool and its namespace at `now` (seconds of the Unix epoch).

    `llms` are all of the namespace, by name: names and ports are unique there, and the route
    table is the namespace's. `pool` is None while LLMDeployments name a pool that is absent.
    `first_port` is where per-model ports start; None where models have no own port. `lost`: nodes
    that are not Ready, whether `nodes` still counts them or not.
    """

    now: float
    key: PoolKey
    pool: PoolObject | None
    llms: tuple[LlmObject, ...] = ()
    nodes: tuple[GpuNode, ...] = ()
    lost: frozenset[NodeName] = frozenset()
    units: tuple[UnitRecord, ...] = ()
    carriers: tuple[Carrier, ...] = ()
    inspections: tuple[Inspection, ...] = ()
    gateways: tuple[GatewayAddress, ...] = ()
    routes: RouteTable | None = None
    plans: tuple[PlanRecord, ...] = ()
    services: frozenset[tuple[ModelName, int]] = frozenset()
    first_port: int | None = None
    url: str = ""

    @property
    def members(self) -> tuple[LlmObject, ...]:
        """The LLMDeployments that name this pool, by name."""
        mine = (x for x in self.llms if x.spec is not None and x.spec.pool == self.key.name)
        return tuple(sorted(mine, key=lambda item: item.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReport:
    """What a unit says of one member; states as in control.proto.

    `seen_sms`: SMs that each of its hosts sees, 0 where that was not measured.
    """

    model: ModelName
    served_name: str = ""
    state: str = "Starting"
    reason: str = ""
    message: str = ""
    permanent: bool = False
    waiting: int = 0
    running: int = 0
    kv_used_bytes: int = 0
    kv_quota_bytes: int = 0
    weight_bytes: int = 0
    restarts: int = 0
    ttft_seconds_sum: float = 0.0
    ttft_count: int = 0
    tpot_seconds_sum: float = 0.0
    tpot_count: int = 0
    rejected: int = 0
    seen_sms: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitReport:
    """The last status a unit told, at `at`; `start_id` tells one process from the next."""

    unit: UnitId
    start_id: str
    at: float
    generation: int = 0
    applied_generation: int = 0
    members: Mapping[ModelName, MemberReport] = field(default_factory=dict)
    kv_total_bytes: int = 0
    kv_free_bytes: int = 0


Subject = tuple[Literal["unit", "inspection", "service", "other"], str]
"""What an action is about: one that is refused holds up others of its subject alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One decision's whole world: the observation, what units said, and measured demand.

    `has_table`: the route table generation each gateway said it has. `not_before`: when a unit
    that died may be started again. `refused`: why a unit refused the spec it was last told.
    `rejected`: what the cluster refuses for good, by kind of action and subject. `observed`: what
    models were seen to get. `profiles` stands for the measured step times that are planned with.
    """

    seen: Observation
    reports: Mapping[UnitId, UnitReport] = field(default_factory=dict)
    demand: Mapping[ModelName, MeasuredDemand] = field(default_factory=dict)
    has_table: Mapping[str, int] = field(default_factory=dict)
    not_before: Mapping[UnitId, float] = field(default_factory=dict)
    refused: Mapping[UnitId, str] = field(default_factory=dict)
    rejected: Mapping[Subject, str] = field(default_factory=dict)
    observed: Mapping[ModelName, Figures] = field(default_factory=dict)
    profiles: str = ""

    @property
    def now(self) -> float:
        return self.seen.now
