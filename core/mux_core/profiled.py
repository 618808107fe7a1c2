"""The default planner over the best step times there are for the pool in question.

Profiles are of one GPU type each. A pool of one type that was profiled is planned with measured and
fitted steps, any other by data sheets, and the plan's notes say so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from mux_core.costmodel.profile_set import CPU
from mux_core.costmodel.sources import ProfileCatalog, Source, choose_costs
from mux_core.costmodel.table import StepTable
from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.turns import TurnUnits
from mux_core.placement import Placement
from mux_core.planners.default import DefaultPlanner
from mux_core.planners.forecast import predict
from mux_core.planning import PlacementProblem, Plan, PlanningPolicy, Prediction
from mux_core.units import ModelName


@dataclass(slots=True)
class ProfiledPlanner:
    """Planner `default` with profiles `by_gpu` type; remembers estimates, as that one does."""

    by_gpu: Mapping[str, ProfileCatalog] = field(default_factory=dict)
    name: str = "default"
    _tables: dict[str, StepTable] = field(default_factory=dict, repr=False)
    _planners: dict[tuple[float, int], DefaultPlanner] = field(default_factory=dict, repr=False)

    def search(self, problem: PlacementProblem) -> Iterator[Plan]:
        gpus = sorted({node.gpu for node in problem.nodes})
        catalog = self.by_gpu.get(gpus[0]) if len(gpus) == 1 else None
        costs = choose_costs(problem.llms, problem.nodes, catalog, {})
        self._tables.update(costs.tables)
        note = self._note(gpus) if catalog is None and gpus and self.by_gpu else ""
        asked = replace(problem, llms=costs.llms)
        forecast = _Forecast(asked, _turns(catalog, self._tables))
        for plan in self._planner(problem.policy).search(asked):
            yield replace(plan, prediction=_told(forecast.of(plan), costs.sources),
                          notes=(*plan.notes, note) if note else plan.notes)  # fmt: skip

    def _planner(self, policy: PlanningPolicy) -> DefaultPlanner:
        key = (policy.headroom, policy.step_percent)
        if key not in self._planners:
            estimator = QueueingUnits(headroom=policy.headroom, step=policy.step_percent,
                                      tables=self._tables)  # fmt: skip
            self._planners[key] = DefaultPlanner(estimator=estimator)
        return self._planners[key]

    def _note(self, gpus: list[str]) -> str:
        return (f"profiles of {', '.join(sorted(self.by_gpu))} are not used: the nodes have "
                f"{', '.join(gpus)}; give a profile of that, one GPU type per pool")  # fmt: skip


@dataclass(slots=True)
class _Forecast:
    """Predictions of one problem's placements; many plans of a search propose the same one."""

    problem: PlacementProblem
    turns: TurnUnits | None
    _known: dict[Placement, Prediction] = field(default_factory=dict)

    def of(self, plan: Plan) -> Prediction:
        if self.turns is None:
            return plan.prediction
        if plan.proposed not in self._known:
            self._known[plan.proposed] = predict(self.problem, plan.proposed, self.turns)
        return self._known[plan.proposed]


def _turns(catalog: ProfileCatalog | None, tables: Mapping[str, StepTable]) -> TurnUnits | None:
    """What predicts units of a profiled CPU: their steps take turns, where a search thinks of SMs
    that work side by side. Slower, so it only says what placements that a search arrived at give.
    """
    if catalog is None or catalog.gpu != CPU:
        return None
    return TurnUnits(tables=tables, interference=catalog.interference, cpu=catalog.cpu)


def _told(prediction: Prediction, sources: Mapping[ModelName, Source]) -> Prediction:
    """The prediction, saying of each model what its step times stand on."""
    models = {name: replace(found, costs=str(sources[name]))
              for name, found in prediction.models.items()}  # fmt: skip
    return replace(prediction, models=models)
