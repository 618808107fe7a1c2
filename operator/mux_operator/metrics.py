"""The operator's own series; what cannot be filled truthfully is not there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from mux_core.comparison import attainment_error
from mux_core.planning import Choice, Objective
from mux_core.problem import Question, known_demand
from mux_core.snapshot import LlmObject, Snapshot
from mux_core.specs import PoolKey
from mux_core.status import Figures, StatusReport, Truth
from mux_core.units import ModelName
from mux_operator.release import release

_TRUTH = {Truth.TRUE: 1, Truth.FALSE: 0, Truth.UNKNOWN: -1}
_POOL = ("namespace", "pool")
_MODEL = (*_POOL, "model")
_NAMED = ("mux_namespace", "pool", "model", "model_name")
"""`namespace` would be the scraper's own; older series still carry it."""
_Values = dict[tuple[Gauge, tuple[str, ...]], float]


@dataclass(slots=True)
class Metrics:
    """All series of one operator process, in their own registry."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    leader: Gauge = field(init=False)
    reconciles: Counter = field(init=False)
    reconcile_s: Histogram = field(init=False)
    step_s: Histogram = field(init=False)
    queue_depth: Gauge = field(init=False)
    queue_oldest: Gauge = field(init=False)
    api_requests: Counter = field(init=False)
    last_event: Gauge = field(init=False)
    plan_s: Histogram = field(init=False)
    plan_failures: Counter = field(init=False)
    pool_gpus: Gauge = field(init=False)
    model_condition: Gauge = field(init=False)
    model_rate: Gauge = field(init=False)
    plan_age: Gauge = field(init=False)
    plan_objective: Gauge = field(init=False)
    plan_awaiting: Gauge = field(init=False)
    demand_age: Gauge = field(init=False)
    slo_objective: Gauge = field(init=False)
    slo_target: Gauge = field(init=False)
    attainment: Gauge = field(init=False)
    attainment_error: Gauge = field(init=False)
    latency: Gauge = field(init=False)
    _models: dict[PoolKey, set[str]] = field(default_factory=dict)
    _compared: dict[PoolKey, _Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        registry = self.registry
        Info("muxserve_build", "What runs.", registry=registry).info(
            {"version": release(), "component": "operator"}
        )
        self.leader = Gauge("muxserve_leader", "1 while this process leads.", registry=registry)
        self.reconciles = Counter("muxserve_reconcile", "Reconcile cycles.",
                                  ("kind", "result"), registry=registry)  # fmt: skip
        self.reconcile_s = Histogram("muxserve_reconcile_duration_seconds", "One cycle.",
                                     ("kind", "result"), registry=registry)  # fmt: skip
        self.step_s = Histogram("muxserve_reconcile_step_seconds", "One step of a cycle.",
                                ("step",), registry=registry)  # fmt: skip
        self.queue_depth = Gauge("muxserve_queue_depth", "Pools due now.", registry=registry)
        self.queue_oldest = Gauge("muxserve_queue_oldest_seconds",
                                  "Longest time a due pool waits.", registry=registry)  # fmt: skip
        self.api_requests = Counter("muxserve_api_requests", "Requests to the API server.",
                                    ("verb", "kind", "code"), registry=registry)  # fmt: skip
        self.last_event = Gauge("muxserve_watch_last_event_timestamp_seconds",
                                "Last watch event.", ("kind",), registry=registry)  # fmt: skip
        self.plan_s = Histogram("muxserve_plan_duration_seconds", "One planner run.", _POOL,
                                registry=registry)  # fmt: skip
        self.plan_failures = Counter("muxserve_plan_failures", "Planner runs without a plan.",
                                     (*_POOL, "reason"), registry=registry)  # fmt: skip
        self.pool_gpus = Gauge("muxserve_pool_gpus", "GPUs (CPU slots) of the pool.",
                               (*_POOL, "state"), registry=registry)  # fmt: skip
        self.model_condition = Gauge("muxserve_model_condition",
                                     "1 true, 0 false, -1 unknown.", (*_MODEL, "type"),
                                     registry=registry)  # fmt: skip
        self.model_rate = Gauge("muxserve_model_request_rate",
                                "Measured arrivals, requests/s.", (*_MODEL, "source"),
                                registry=registry)  # fmt: skip
        self.plan_age = Gauge("muxserve_plan_age_seconds",
                              "Since this process made the plan it carries out.", _POOL,
                              registry=registry)  # fmt: skip
        self.plan_objective = Gauge("muxserve_plan_objective",
                                    "GPUs used, which planning makes few; less is better.",
                                    (*_POOL, "kind"), registry=registry)  # fmt: skip
        self.plan_awaiting = Gauge("muxserve_plan_awaiting_approval",
                                   "1 while a better plan would disturb what runs.", _POOL,
                                   registry=registry)  # fmt: skip
        self.demand_age = Gauge("muxserve_model_demand_age_seconds",
                                "Age of the measured rate at the last cycle.", _MODEL,
                                registry=registry)  # fmt: skip
        self.slo_objective = Gauge("muxserve_model_slo_objective_ratio",
                                   "Share of requests that must meet the targets.", _MODEL,
                                   registry=registry)  # fmt: skip
        self.slo_target = Gauge("muxserve_model_slo_target_seconds", "Target of one request.",
                                (*_MODEL, "signal"), registry=registry)  # fmt: skip
        self.attainment = Gauge("muxserve_model_slo_attainment_ratio",
                                "Share of requests within the SLO.", (*_NAMED, "kind"),
                                registry=registry)  # fmt: skip
        self.attainment_error = Gauge("muxserve_plan_prediction_error_ratio",
                                      "Observed minus predicted attainment, while about as much "
                                      "arrives as was planned for.", _NAMED,
                                      registry=registry)  # fmt: skip
        self.latency = Gauge("muxserve_model_latency_seconds",
                             "Mean and 99th percentile of TTFT and TPOT.",
                             (*_NAMED, "signal", "stat", "kind"), registry=registry)  # fmt: skip

    def compared(
        self, key: PoolKey, report: StatusReport, observed: Mapping[ModelName, Figures]
    ) -> None:
        """Shows what was predicted of each model of one pool beside what it was seen to get."""
        values: _Values = {}
        for model, status in report.llms.items():
            labels: tuple[str, ...] = (*_pool(key), model, status.served_name)
            predicted, seen = status.predicted, observed.get(model)
            values |= self._figures(labels, "predicted", predicted or Figures())
            values |= self._figures(labels, "observed", seen or Figures())
            error = attainment_error(predicted, seen)
            if error is not None:
                values[self.attainment_error, labels] = error
        before = self._compared.get(key, {})
        for gauge, gone in before.keys() - values.keys():
            gauge.remove(*gone)
        for (gauge, labels), value in values.items():
            if before.get((gauge, labels)) != value:
                gauge.labels(*labels).set(value)
        self._compared[key] = values

    def _figures(self, labels: tuple[str, ...], kind: str, found: Figures) -> _Values:
        """Series and values of those that are known."""
        values = {
            (self.attainment, (*labels, kind)): found.attainment,
            (self.latency, (*labels, "ttft", "mean", kind)): found.ttft_mean_s,
            (self.latency, (*labels, "ttft", "p99", kind)): found.ttft_p99_s,
            (self.latency, (*labels, "tpot", "mean", kind)): found.tpot_mean_s,
            (self.latency, (*labels, "tpot", "p99", kind)): found.tpot_p99_s,
        }
        return {series: value for series, value in values.items() if value is not None}

    def asked(self, key: PoolKey, snapshot: Snapshot) -> None:
        """Shows what is asked of each model of one pool, and how old its measured rate is."""
        for item in snapshot.seen.members:
            labels = (*_pool(key), item.name)
            for gauge in (self.demand_age, self.slo_objective, self.slo_target):
                gauge.remove_by_labels(dict(zip(_MODEL, labels, strict=True)))
            demand = known_demand(item, snapshot)
            if demand is not None:
                self.demand_age.labels(*labels).set(max(0.0, snapshot.now - demand.as_of))
            self._show_slo(labels, item)

    def planned(self, key: PoolKey, question: Question, choice: Choice, made_at: float) -> None:
        """Shows the plan of one pool. `made_at` and the question's `now` are of one clock."""
        best = choice.awaiting or choice.plan
        self.plan_awaiting.labels(*_pool(key)).set(int(choice.awaiting is not None))
        age = question.problem.now - made_at
        self.plan_age.labels(*_pool(key)).set(max(0.0, age))
        if question.problem.policy.objective is Objective.GPUS:
            gauge, current = self.plan_objective, question.problem.current
            gauge.labels(*_pool(key), "current").set(current.gpus_used)
            gauge.labels(*_pool(key), "proposed").set(best.prediction.gpus_used)

    def unplanned(self, key: PoolKey) -> None:
        """There is no plan of the pool to show: it failed, or the pool is gone."""
        labels = dict(zip(_POOL, _pool(key), strict=True))
        self.plan_age.remove_by_labels(labels)
        self.plan_awaiting.remove_by_labels(labels)
        self.plan_objective.remove_by_labels(labels)

    def _show_slo(self, labels: tuple[str, str, str], item: LlmObject) -> None:
        slo = item.spec.slo if item.spec is not None and not item.spec_error else None
        if slo is None:
            return
        self.slo_objective.labels(*labels).set(slo.objective)
        for signal, target in (("ttft", slo.ttft_s), ("tpot", slo.tpot_s)):
            if target is not None:
                self.slo_target.labels(*labels, signal).set(target)

    def told(self, key: PoolKey, report: StatusReport, rates: dict[str, tuple[str, float]]) -> None:
        """Shows the statuses of one pool; series of models that are gone disappear."""
        self._forget(key, set(report.llms))
        for model, status in report.llms.items():
            for item in status.conditions:
                self.model_condition.labels(key.namespace, key.name, model, item.type).set(
                    _TRUTH[item.status]
                )
        for name, (source, rate) in rates.items():
            self.model_rate.labels(key.namespace, key.name, name, source).set(rate)
        if report.pool is None:
            self.pool_gpus.remove_by_labels(dict(zip(_POOL, _pool(key), strict=True)))
        else:
            gauge = self.pool_gpus
            gauge.labels(*_pool(key), "total").set(report.pool.gpus)
            gauge.labels(*_pool(key), "free").set(report.pool.free_gpus)
            gauge.labels(*_pool(key), "used").set(report.pool.gpus - report.pool.free_gpus)

    def _forget(self, key: PoolKey, models: Iterable[str]) -> None:
        kept = set(models)
        for gone in self._models.get(key, set()) - kept:
            labels = {"namespace": key.namespace, "pool": key.name, "model": gone}
            for gauge in (self.model_condition, self.model_rate, self.demand_age,
                          self.slo_objective, self.slo_target):  # fmt: skip
                gauge.remove_by_labels(labels)
        self._models[key] = kept


def _pool(key: PoolKey) -> tuple[str, str]:
    return key.namespace, key.name
