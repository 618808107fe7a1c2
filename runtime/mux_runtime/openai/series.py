"""Labels that every series of a model carries, and the series of a request's first hop.

The first hop (the gateway, or the unit for requests that bypass it) counts arrivals before any
hold or rejection, and compares each request with the exact SLO of its model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from mux_runtime.openai import buckets

MODEL_LABELS: Final = ("mux_namespace", "pool", "model", "model_name")
MAX_MODELS: Final = 1000
"""Distinct models per exporter; further ones share the labels of `OTHER`."""
OTHER: Final = "other"


class Hop(StrEnum):
    """Where a request met us first."""

    GATEWAY = "gateway"
    UNIT = "unit"


class SloResult(StrEnum):
    """What became of a request, against its model's SLO; one per request."""

    GOOD = "good"
    TTFT_LATE = "ttft_late"
    TPOT_LATE = "tpot_late"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTargets:
    """A model's targets in seconds; both None: best effort, nothing is counted."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    @property
    def any(self) -> bool:
        return self.ttft_s is not None or self.tpot_s is not None

    def judge(self, *, ttft_s: float | None, tpot_s: float | None, failed: bool) -> SloResult:
        """Error, else ttft_late, else tpot_late, else good."""
        if failed:
            return SloResult.ERROR
        if self.ttft_s is not None and ttft_s is not None and ttft_s > self.ttft_s:
            return SloResult.TTFT_LATE
        if self.tpot_s is not None and tpot_s is not None and tpot_s > self.tpot_s:
            return SloResult.TPOT_LATE
        return SloResult.GOOD


@dataclass(slots=True)
class Judged:
    """Requests of one model held against its SLO since this process started, and within it."""

    judged: int = 0
    met: int = 0


class ModelLabels:
    """Label values of models, at most `MAX_MODELS` of them at a time."""

    def __init__(self, *, namespace: str, pool: str) -> None:
        self.namespace = namespace
        self.pool = pool
        self._known: set[str] = set()

    def of(self, model: str, served_name: str) -> tuple[str, str, str, str]:
        """Values for `MODEL_LABELS`."""
        if model not in self._known:
            if len(self._known) >= MAX_MODELS:
                return (self.namespace, self.pool, OTHER, OTHER)
            self._known.add(model)
        return (self.namespace, self.pool, model, served_name)

    def forget(self, model: str) -> None:
        self._known.discard(model)


def drop_model(metric: MetricWrapperBase, model: str) -> None:
    """Removes the series of a model that left this process."""
    at = metric._labelnames.index("model")
    for values in list(_label_values(metric)):
        if values[at] == model:
            metric.remove(*values)


def _label_values(metric: MetricWrapperBase) -> Iterator[tuple[str, ...]]:
    seen = set()
    for family in metric.collect():
        for sample in family.samples:
            seen.add(tuple(sample.labels[name] for name in metric._labelnames))
    yield from sorted(seen)


class FirstHop:
    """Arrivals, time to first token and SLO results of the requests that met us first."""

    def __init__(self, registry: CollectorRegistry, labels: ModelLabels, hop: Hop) -> None:
        # Their `_created` twins would double the series, under names that nobody documents.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._labels = labels
        self._hop = hop.value
        self.judged: dict[str, Judged] = {}
        names = (*MODEL_LABELS, "hop")
        self._requests = Counter(
            "muxserve_model_requests", "Arrivals, before any hold or rejection.", names,
            registry=registry)  # fmt: skip
        self._ttft = Histogram(
            "muxserve_model_ttft_seconds", "Arrival to first token, hold included.", names,
            buckets=buckets.TTFT, registry=registry)  # fmt: skip
        self._slo = Counter(
            "muxserve_model_slo_requests", "Requests by result against the model's SLO.",
            (*names, "result"), registry=registry)  # fmt: skip

    def arrived(self, model: str, served_name: str) -> None:
        self._requests.labels(*self._labels.of(model, served_name), self._hop).inc()

    def first_token(self, model: str, served_name: str, seconds: float) -> None:
        values = (*self._labels.of(model, served_name), self._hop)
        self._ttft.labels(*values).observe(seconds)

    def ended(self, model: str, served_name: str, targets: SloTargets, *, ttft_s: float | None,
              tpot_s: float | None, failed: bool) -> None:  # fmt: skip
        """Counts the result; not to be called for the client's own mistakes and cancels."""
        if not targets.any:
            return
        result = targets.judge(ttft_s=ttft_s, tpot_s=tpot_s, failed=failed)
        counted = self.judged.setdefault(model, Judged())
        counted.judged += 1
        counted.met += result is SloResult.GOOD
        self._slo.labels(*self._labels.of(model, served_name), self._hop, result.value).inc()

    def forget(self, model: str) -> None:
        for metric in (self._requests, self._ttft, self._slo):
            drop_model(metric, model)
        self._labels.forget(model)
