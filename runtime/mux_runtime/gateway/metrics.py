"""The gateway's series, and the counters that the operator reads."""

from collections import Counter as Count
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mux_core.routes import Route, RouteTable
from mux_runtime.openai import buckets
from mux_runtime.openai.series import MODEL_LABELS, FirstHop, Hop, ModelLabels, drop_model

UNKNOWN: Final = "unknown"
"""Stands for any name that is in no table: what clients type must not become a label."""


class Rejected(StrEnum):
    """Why the gateway itself said no."""

    QUEUE_FULL = "queue_full"
    HOLD_FULL = "hold_full"
    NO_UNIT = "no_unit"
    HOLD_EXPIRED = "hold_expired"


class HoldOutcome(StrEnum):
    """How a hold ended."""

    SERVED = "served"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Cut(StrEnum):
    """Why a stream ended before its time."""

    DRAIN = "drain"
    UNIT_LOST = "unit_lost"


@dataclass(slots=True, kw_only=True)
class ModelCounters:
    """What the operator reads, since this process started."""

    arrivals: int = 0
    rejected: int = 0
    cancelled: int = 0


class GatewayMetrics:
    """All series of one gateway process."""

    def __init__(self, registry: CollectorRegistry, *, namespace: str, pool: str) -> None:
        self.registry = registry
        self._labels = ModelLabels(namespace=namespace, pool=pool)
        self.first_hop = FirstHop(registry, self._labels, Hop.GATEWAY)
        Gauge("muxserve_build_info", "Version of this process.", ("version", "component"),
              registry=registry).labels(version("muxserve-operator"), "gateway").set(1)  # fmt: skip
        self.counters: dict[str, ModelCounters] = {}
        self._models: frozenset[str] = frozenset()
        self._inside: Count[str] = Count()
        self._responses = Counter(
            "muxserve_gateway_responses",
            "Answers by HTTP status.",
            (*MODEL_LABELS, "code"),
            registry=registry,
        )
        self._rejected = Counter(
            "muxserve_gateway_rejected",
            "Requests that the gateway itself refused.",
            (*MODEL_LABELS, "reason"),
            registry=registry,
        )
        self._held = Gauge(
            "muxserve_model_held_requests",
            "Requests waiting for an endpoint.",
            MODEL_LABELS,
            registry=registry,
        )
        self._inflight = Gauge(
            "muxserve_gateway_inflight_requests",
            "Requests in the gateway.",
            MODEL_LABELS,
            registry=registry,
        )
        self._hold = Histogram(
            "muxserve_gateway_hold_seconds",
            "Time held, by how it ended.",
            (*MODEL_LABELS, "outcome"),
            buckets=buckets.HOLD,
            registry=registry,
        )
        self._cut = Counter(
            "muxserve_gateway_streams_cut",
            "Streams ended before their time.",
            (*MODEL_LABELS, "reason"),
            registry=registry,
        )

    def place(self, table: RouteTable) -> None:
        """Whose models these are; series of models that left go, counters stay readable.

        A model with requests inside keeps its series until the last of them has left.
        """
        self._labels.namespace, self._labels.pool = table.namespace, table.pool
        before, self._models = self._models, frozenset(r.model for r in table.routes)
        for model in sorted(before - self._models):
            if not self._inside[model]:
                self._drop(model)

    def _of(self, route: Route) -> tuple[str, ...]:
        return self._labels.of(route.model, route.served_name)

    def model(self, route: Route) -> ModelCounters:
        return self.counters.setdefault(route.model, ModelCounters())

    def arrived(self, route: Route) -> None:
        self.model(route).arrivals += 1
        self._inside[route.model] += 1
        self.first_hop.arrived(route.model, route.served_name)
        self._inflight.labels(*self._of(route)).inc()

    def left(self, route: Route) -> None:
        self._inside[route.model] -= 1
        self._inflight.labels(*self._of(route)).dec()
        if not self._inside[route.model]:
            del self._inside[route.model]
            if route.model not in self._models:
                self._drop(route.model)

    def answered(self, route: Route | None, code: int) -> None:
        labels = (self._labels.namespace, self._labels.pool, UNKNOWN, UNKNOWN)
        self._responses.labels(*(self._of(route) if route else labels), str(code)).inc()

    def rejected(self, route: Route, reason: Rejected) -> None:
        self.model(route).rejected += 1
        self._rejected.labels(*self._of(route), reason.value).inc()

    def held(self, route: Route, by: int) -> None:
        self._held.labels(*self._of(route)).inc(by)

    def hold_ended(self, route: Route, outcome: HoldOutcome, seconds: float) -> None:
        self._hold.labels(*self._of(route), outcome.value).observe(seconds)

    def cut(self, route: Route, reason: Cut) -> None:
        self._cut.labels(*self._of(route), reason.value).inc()

    def _drop(self, model: str) -> None:
        for metric in (self._responses, self._rejected, self._held, self._inflight, self._hold,
                       self._cut):  # fmt: skip
            drop_model(metric, model)
        self.first_hop.forget(model)
