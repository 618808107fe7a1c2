"""The operator's own series; what cannot be filled truthfully is not there."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from mux_core.specs import PoolKey
from mux_core.status import StatusReport, Truth

_TRUTH = {Truth.TRUE: 1, Truth.FALSE: 0, Truth.UNKNOWN: -1}
_POOL = ("namespace", "pool")
_MODEL = (*_POOL, "model")


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
    _models: dict[PoolKey, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        registry = self.registry
        Info("muxserve_build", "What runs.", registry=registry).info(
            {"version": _version(), "component": "operator"}
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
        if report.pool is not None:
            gauge = self.pool_gpus
            gauge.labels(*_pool(key), "total").set(report.pool.gpus)
            gauge.labels(*_pool(key), "free").set(report.pool.free_gpus)
            gauge.labels(*_pool(key), "used").set(report.pool.gpus - report.pool.free_gpus)

    def _forget(self, key: PoolKey, models: Iterable[str]) -> None:
        kept = set(models)
        for gone in self._models.get(key, set()) - kept:
            labels = {"namespace": key.namespace, "pool": key.name, "model": gone}
            self.model_condition.remove_by_labels(labels)
            self.model_rate.remove_by_labels(labels)
        self._models[key] = kept


def _pool(key: PoolKey) -> tuple[str, str]:
    return key.namespace, key.name


def _version() -> str:
    try:
        return version("muxserve-operator")
    except PackageNotFoundError:
        return "unknown"
