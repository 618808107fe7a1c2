"""Steps that change the world, each with its reason; a closed union.

`ClusterAction`s go through the cluster door (pods and ConfigMaps, or processes and files); the
others are calls to a running unit. Every action is idempotent: performing it again, by the same
or the next operator, ends in the same world.
"""

from dataclasses import dataclass
from enum import StrEnum

from mux_core.placement import Placement
from mux_core.planning import Plan, Prediction
from mux_core.routes import RouteTable
from mux_core.snapshot import UnitAddress, UnitRecord
from mux_core.specs import ModelSource
from mux_core.units import ModelName, UnitId
from mux_core.unitspec import UnitSpec


class Why(StrEnum):
    """Why an action is taken."""

    SOURCE_UNKNOWN = "SourceUnknown"
    INSPECTED = "Inspected"
    PLACED = "Placed"
    MEMBERS_CHANGED = "MembersChanged"
    SPEC_BEHIND = "SpecBehind"
    UNIT_DIED = "UnitDied"
    UNIT_EMPTY = "UnitEmpty"
    UNIT_MISSING = "UnitMissing"
    SERVING_CHANGED = "ServingChanged"
    ROUTES_CHANGED = "RoutesChanged"
    PLAN_CHANGED = "PlanChanged"
    POOL_GONE = "PoolGone"


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectModel:
    """Reads config and tensor headers of a checkpoint: a small pod, or a subprocess."""

    model: ModelName
    source: ModelSource
    path: str
    uid: str
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class EndInspection:
    """Removes an inspect run whose result is kept, or is no longer wanted."""

    model: ModelName
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteUnit:
    """Writes down what a unit is to be; never touches a running process."""

    record: UnitRecord
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUnit:
    """Starts the record's incarnation, able to read `claims`. Starting it twice starts it once."""

    record: UnitRecord
    claims: frozenset[str]
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class StopUnit:
    """Ends one incarnation: SIGTERM, drain, gone."""

    unit: UnitId
    incarnation: int
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetUnit:
    """Removes the record of a unit that is no longer wanted and no longer runs."""

    unit: UnitId
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelUnit:
    """Says which models a carrier serves, so that their Services select it."""

    unit: UnitId
    incarnation: int
    serving: frozenset[ModelName]
    draining: frozenset[ModelName]
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureService:
    """Gives a model its own address."""

    model: ModelName
    uid: str
    port: int
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRoutes:
    """Makes `table` the namespace's route table: written down, then pushed to each gateway."""

    table: RouteTable
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPlan:
    """Writes a plan down for people and removes the `expired` ones.

    `waits`: none of its steps is carried out unless it is approved. `superseded`: earlier plans
    that waited, which new inputs have overtaken. `before`: the prediction of what runs meanwhile.
    """

    name: str
    revision: int
    inputs_hash: str
    current: Placement
    plan: Plan
    expired: tuple[str, ...]
    why: Why
    waits: bool = False
    before: Prediction | None = None
    superseded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyUnit:
    """Tells a running unit its wanted state (gRPC, idempotent by generation)."""

    unit: UnitId
    address: UnitAddress
    spec: UnitSpec
    why: Why


ClusterAction = (
    InspectModel | EndInspection | WriteUnit | StartUnit | StopUnit | ForgetUnit | LabelUnit
    | EnsureService | PublishRoutes | RecordPlan
)  # fmt: skip
Action = ClusterAction | ApplyUnit
