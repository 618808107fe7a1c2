"""Placement strategies and estimators by the names people write."""

from collections.abc import Mapping

from mux_core.costmodel.table import StepTable
from mux_core.errors import SpecError
from mux_core.estimator.muxserve import ReplayRules
from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.reference import ReferenceUnits
from mux_core.estimator.unit import UnitEstimator
from mux_core.planners.baselines import SpatialPlanner, SpatialReplicasPlanner, TemporalPlanner
from mux_core.planners.default import DefaultPlanner
from mux_core.planners.replay import ReplayPlanner
from mux_core.planning import Planner

STRATEGIES = (
    "default", "muxserve-released", "muxserve-fixed", "spatial", "spatial-replicas", "temporal",
)  # fmt: skip
ESTIMATORS = ("default", "muxserve")


def make_estimator(
    name: str, *, headroom: float = 0.9, tables: Mapping[str, StepTable] | None = None
) -> UnitEstimator:
    """The estimator of that name. `tables`: measured profiles beside the shipped ones."""
    if name == "muxserve":
        return ReferenceUnits(tables=tables or {})
    if name == "default":
        return QueueingUnits(headroom=headroom, tables=tables or {})
    raise SpecError(f"estimator {name}: unknown; one of {', '.join(ESTIMATORS)}")


def make_planner(
    strategy: str,
    *,
    estimator: UnitEstimator,
    switches: Mapping[str, bool] | None = None,
) -> Planner:
    """The strategy of that name. Raises SpecError for an unknown one or a switch it lacks."""
    if switches and not strategy.startswith("muxserve-"):
        raise SpecError(f"strategy {strategy}: has no switches; those belong to muxserve-released "
                        "and muxserve-fixed")  # fmt: skip
    match strategy:
        case "default":
            return DefaultPlanner(estimator=estimator)
        case "muxserve-released" | "muxserve-fixed":
            rules = ReplayRules(stale_mesh_index=strategy == "muxserve-released")
            return ReplayPlanner(name=strategy, rules=rules.with_switches(dict(switches or {})))
        case "spatial":
            return SpatialPlanner(estimator=estimator)
        case "spatial-replicas":
            return SpatialReplicasPlanner(estimator=estimator)
        case "temporal":
            return TemporalPlanner(estimator=estimator)
    raise SpecError(f"strategy {strategy}: unknown; one of {', '.join(STRATEGIES)}")
