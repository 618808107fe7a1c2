"""Every condition and every reason there is: closed, so that people and programs can rely on them.

`REASONS` is the table: condition -> status -> reasons. A condition outside it cannot be made. The
order of LLM_CONDITIONS is the order in which `Ready` looks for the first that fails.
"""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Final

from mux_core.errors import InvariantError
from mux_core.status import Condition, Truth


class ConditionType(StrEnum):
    """What a condition is about; of an LLMDeployment, then of a GPUPool."""

    MODEL_RESOLVED = "ModelResolved"
    WEIGHTS_CACHED = "WeightsCached"
    DEMAND_KNOWN = "DemandKnown"
    PLACED = "Placed"
    RUNTIME_READY = "RuntimeReady"
    SHARE_VERIFIED = "ShareVerified"
    ROUTE_READY = "RouteReady"
    SLO_MET = "SLOMet"
    READY = "Ready"
    INVENTORY_READY = "InventoryReady"
    PLAN_CURRENT = "PlanCurrent"
    MOVES_ALLOWED = "MovesAllowed"


class Reason(StrEnum):
    """Why a condition is as it is."""

    READY = "Ready"
    # the model and its weights
    RESOLVED = "Resolved"
    REVISION_UNPINNED = "RevisionUnpinned"
    RESOLVING = "Resolving"
    INVALID_SPEC = "InvalidSpec"
    UNSUPPORTED_SOURCE = "UnsupportedSource"
    NOT_FOUND = "NotFound"
    ACCESS_DENIED = "AccessDenied"
    UNSUPPORTED_MODEL = "UnsupportedModel"
    UNSUPPORTED_VERSION = "UnsupportedVersion"
    CORRUPT_CHECKPOINT = "CorruptCheckpoint"
    TOKENIZER_MISSING = "TokenizerMissing"
    INSPECTION_FAILED = "InspectionFailed"
    SECRET_MISSING = "SecretMissing"
    NAME_CONFLICT = "NameConflict"
    CACHED = "Cached"
    PENDING = "Pending"
    # demand
    RUNTIME_COUNTERS = "RuntimeCounters"
    DECLARED = "Declared"
    NO_SAMPLES = "NoSamples"
    STALE = "Stale"
    # placement
    SHARED = "Shared"
    EXCLUSIVE = "Exclusive"
    POOL_NOT_FOUND = "PoolNotFound"
    NO_CAPACITY = "NoCapacity"
    DOES_NOT_FIT = "DoesNotFit"
    TENANT_CONFLICT = "TenantConflict"
    CLAIM_NOT_MOUNTED = "ClaimNotMounted"
    PLANNER_ERROR = "PlannerError"
    AWAITING_APPROVAL = "AwaitingApproval"
    PLANNING = "Planning"
    # the runtime
    SERVING = "Serving"
    STARTING = "Starting"
    DRAINING = "Draining"
    ENGINE_CRASHED = "EngineCrashed"
    UNIT_NOT_READY = "UnitNotReady"
    UNIT_REFUSED_SPEC = "UnitRefusedSpec"
    NODE_LOST = "NodeLost"
    UNIT_UNREACHABLE = "UnitUnreachable"
    # shares
    MEASURED = "Measured"
    NOT_SHARED = "NotShared"
    SM_COUNT_MISMATCH = "SMCountMismatch"
    MEMORY_MISMATCH = "MemoryMismatch"
    NO_LIMIT_OBSERVED = "NoLimitObserved"
    MPS_UNAVAILABLE = "MPSUnavailable"
    NOT_MEASURED = "NotMeasured"
    NOT_APPLICABLE = "NotApplicable"
    # routes and service level
    ROUTABLE = "Routable"
    NO_READY_UNIT = "NoReadyUnit"
    GATEWAY_DOWN = "GatewayDown"
    MET = "Met"
    TTFT_MISSED = "TTFTMissed"
    TPOT_MISSED = "TPOTMissed"
    NO_SLO = "NoSLO"
    TOO_FEW_REQUESTS = "TooFewRequests"
    # the pool
    DISCOVERED = "Discovered"
    NO_MATCHING_NODES = "NoMatchingNodes"
    UP_TO_DATE = "UpToDate"
    APPLYING = "Applying"
    INFEASIBLE = "Infeasible"
    OPEN = "Open"
    RECOMMEND_ONLY = "RecommendOnly"


_C, _R = ConditionType, Reason

LLM_CONDITIONS: Final = (
    _C.MODEL_RESOLVED, _C.WEIGHTS_CACHED, _C.DEMAND_KNOWN, _C.PLACED, _C.RUNTIME_READY,
    _C.SHARE_VERIFIED, _C.ROUTE_READY, _C.SLO_MET,
)  # fmt: skip
POOL_CONDITIONS: Final = (_C.INVENTORY_READY, _C.PLAN_CURRENT, _C.MOVES_ALLOWED)
INFORMING: Final = frozenset({_C.DEMAND_KNOWN, _C.SLO_MET, _C.MOVES_ALLOWED})
"""Conditions that `Ready` does not look at."""

_UNRESOLVED: Final = frozenset({
    _R.INVALID_SPEC, _R.UNSUPPORTED_SOURCE, _R.NOT_FOUND, _R.ACCESS_DENIED, _R.UNSUPPORTED_MODEL,
    _R.UNSUPPORTED_VERSION, _R.CORRUPT_CHECKPOINT, _R.TOKENIZER_MISSING, _R.INSPECTION_FAILED,
    _R.SECRET_MISSING, _R.NAME_CONFLICT,
})  # fmt: skip

REASONS: Final[Mapping[ConditionType, Mapping[Truth, frozenset[Reason]]]] = {
    _C.MODEL_RESOLVED: {
        Truth.TRUE: frozenset({_R.RESOLVED, _R.REVISION_UNPINNED}),
        Truth.FALSE: _UNRESOLVED,
        Truth.UNKNOWN: frozenset({_R.RESOLVING}),
    },
    _C.WEIGHTS_CACHED: {
        Truth.TRUE: frozenset({_R.CACHED}),
        Truth.FALSE: frozenset(),
        Truth.UNKNOWN: frozenset({_R.PENDING}),
    },
    _C.DEMAND_KNOWN: {
        Truth.TRUE: frozenset({_R.RUNTIME_COUNTERS, _R.DECLARED}),
        Truth.FALSE: frozenset({_R.NO_SAMPLES, _R.STALE}),
        Truth.UNKNOWN: frozenset(),
    },
    _C.PLACED: {
        Truth.TRUE: frozenset({_R.SHARED, _R.EXCLUSIVE}),
        Truth.FALSE: frozenset({_R.POOL_NOT_FOUND, _R.NO_CAPACITY, _R.DOES_NOT_FIT,
                                _R.TENANT_CONFLICT, _R.CLAIM_NOT_MOUNTED, _R.AWAITING_APPROVAL,
                                _R.PLANNER_ERROR, _R.INVALID_SPEC}),
        Truth.UNKNOWN: frozenset({_R.PLANNING}),
    },
    _C.RUNTIME_READY: {
        Truth.TRUE: frozenset({_R.SERVING}),
        Truth.FALSE: frozenset({_R.STARTING, _R.DRAINING, _R.ENGINE_CRASHED, _R.UNIT_NOT_READY,
                                _R.UNIT_REFUSED_SPEC, _R.NODE_LOST, _R.NOT_FOUND,
                                _R.UNSUPPORTED_MODEL, _R.UNSUPPORTED_VERSION,
                                _R.CORRUPT_CHECKPOINT, _R.TOKENIZER_MISSING, _R.DOES_NOT_FIT,
                                _R.SM_COUNT_MISMATCH, _R.NO_LIMIT_OBSERVED,
                                _R.MPS_UNAVAILABLE}),
        Truth.UNKNOWN: frozenset({_R.UNIT_UNREACHABLE}),
    },
    _C.SHARE_VERIFIED: {
        Truth.TRUE: frozenset({_R.MEASURED, _R.NOT_SHARED}),
        Truth.FALSE: frozenset({_R.SM_COUNT_MISMATCH, _R.MEMORY_MISMATCH, _R.NO_LIMIT_OBSERVED,
                                _R.MPS_UNAVAILABLE}),
        Truth.UNKNOWN: frozenset({_R.NOT_MEASURED, _R.NOT_APPLICABLE}),
    },
    _C.ROUTE_READY: {
        Truth.TRUE: frozenset({_R.ROUTABLE}),
        Truth.FALSE: frozenset({_R.NO_READY_UNIT, _R.DRAINING, _R.GATEWAY_DOWN}),
        Truth.UNKNOWN: frozenset(),
    },
    _C.SLO_MET: {
        Truth.TRUE: frozenset({_R.MET}),
        Truth.FALSE: frozenset({_R.TTFT_MISSED, _R.TPOT_MISSED}),
        Truth.UNKNOWN: frozenset({_R.NO_SLO, _R.TOO_FEW_REQUESTS, _R.NOT_MEASURED}),
    },
    _C.INVENTORY_READY: {
        Truth.TRUE: frozenset({_R.DISCOVERED}),
        Truth.FALSE: frozenset({_R.NO_MATCHING_NODES, _R.INVALID_SPEC}),
        Truth.UNKNOWN: frozenset(),
    },
    _C.PLAN_CURRENT: {
        Truth.TRUE: frozenset({_R.UP_TO_DATE}),
        Truth.FALSE: frozenset({_R.APPLYING, _R.INFEASIBLE, _R.PLANNER_ERROR,
                                _R.AWAITING_APPROVAL}),
        Truth.UNKNOWN: frozenset({_R.PLANNING}),
    },
    _C.MOVES_ALLOWED: {
        Truth.TRUE: frozenset({_R.OPEN}),
        Truth.FALSE: frozenset({_R.RECOMMEND_ONLY}),
        Truth.UNKNOWN: frozenset(),
    },
}  # fmt: skip


def condition(
    kind: ConditionType, status: Truth, reason: Reason, message: str = "", *,
    permanent: bool = False,
) -> Condition:  # fmt: skip
    """The one way to make a condition; a reason outside the table is our bug."""
    if kind is not ConditionType.READY and reason not in REASONS[kind][status]:
        raise InvariantError(f"condition {kind}={status}: reason {reason} is not in its table")
    return Condition(type=kind, status=status, reason=reason, message=message, permanent=permanent)


def with_ready(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """`Ready` first, then `conditions`; it copies the first that fails, in order."""
    failing = next((c for c in conditions if _fails(c)), None)
    if failing is None:
        ready = condition(ConditionType.READY, Truth.TRUE, Reason.READY)
    else:
        ready = replace(failing, type=ConditionType.READY, status=Truth.FALSE)
    return (ready, *conditions)


def settled(
    conditions: tuple[Condition, ...],
    before: tuple[Condition, ...],
    *,
    generation: int,
    now: float,
) -> tuple[Condition, ...]:
    """`conditions` stamped: of `generation`, and `since` kept where the status did not change."""
    old = {c.type: c for c in before}
    return tuple(
        replace(c, observed_generation=generation, since=_since(c, old.get(c.type), now))
        for c in conditions
    )


def _since(new: Condition, old: Condition | None, now: float) -> float:
    return old.since if old is not None and old.status is new.status else now


def _fails(item: Condition) -> bool:
    if item.type in INFORMING:
        return False
    if item.type == ConditionType.SHARE_VERIFIED:
        return item.status is Truth.FALSE
    return not item.holds
