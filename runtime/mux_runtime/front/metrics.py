"""What the front measures of each request, under vLLM's names where they mean the same.

On the unit's metrics port the `vllm:` series also carry namespace, pool, model and unit; on a
model's own port they carry `model_name` alone, as vLLM's do (`model_exposition`).
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from mux_runtime.generation import ServedModel
from mux_runtime.openai import buckets
from mux_runtime.openai.series import MODEL_LABELS, FirstHop, Hop, ModelLabels, drop_model

UNIT_LABELS: Final = (*MODEL_LABELS, "unit")


class Finished(StrEnum):
    """vLLM's `finished_reason`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class FrontMetrics:
    """The front's series in `registry`; `first_hop` is for requests that bypass the gateway."""

    def __init__(self, registry: CollectorRegistry, *, namespace: str, pool: str,
                 unit: str) -> None:  # fmt: skip
        self.registry = registry
        self._unit = unit
        self._labels = ModelLabels(namespace=namespace, pool=pool)
        self.first_hop = FirstHop(registry, self._labels, Hop.UNIT)
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "Arrival in the unit to first token.", buckets.TTFT
        )
        self._itl = self._histogram(
            "inter_token_latency_seconds",
            "Time between two tokens of a request.",
            buckets.PER_TOKEN,
        )
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first.",
            buckets.PER_TOKEN,
        )
        self._e2e = self._histogram(
            "e2e_request_latency_seconds", "Arrival in the unit to last token.", buckets.REQUEST
        )
        self._prompt = self._counter("prompt_tokens", "Prompt tokens processed.")
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._success = self._counter(
            "request_success", "Requests ended, by reason.", "finished_reason")  # fmt: skip

    def _histogram(self, name: str, help_text: str, edges: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", help_text, UNIT_LABELS, buckets=edges,
                         registry=self.registry)  # fmt: skip

    def _counter(self, name: str, help_text: str, *more: str) -> Counter:
        return Counter(f"vllm:{name}", help_text, (*UNIT_LABELS, *more), registry=self.registry)

    def _values(self, model: ServedModel) -> tuple[str, ...]:
        return (*self._labels.of(model.model, model.served_name), self._unit)

    def first_token(self, model: ServedModel, seconds: float, *, prompt_tokens: int) -> None:
        values = self._values(model)
        self._ttft.labels(*values).observe(seconds)
        self._prompt.labels(*values).inc(prompt_tokens)

    def tokens(self, model: ServedModel, count: int, *, since_last_s: float | None) -> None:
        """`count` new tokens of one request; `since_last_s` is None for the first ones."""
        values = self._values(model)
        self._generated.labels(*values).inc(count)
        if since_last_s is not None:
            self._itl.labels(*values).observe(since_last_s)

    def ended(self, model: ServedModel, reason: Finished, *, e2e_s: float,
              tpot_s: float | None) -> None:  # fmt: skip
        values = self._values(model)
        self._success.labels(*values, reason.value).inc()
        if reason in (Finished.STOP, Finished.LENGTH):
            self._e2e.labels(*values).observe(e2e_s)
            if tpot_s is not None:
                self._tpot.labels(*values).observe(tpot_s)

    def forget(self, model: str) -> None:
        """Removes the series of a model that left this unit."""
        for metric in (self._ttft, self._itl, self._tpot, self._e2e, self._prompt,
                       self._generated, self._success):  # fmt: skip
            drop_model(metric, model)
        self.first_hop.forget(model)
        self.first_hop.judged.pop(model, None)


class _OneModel(Collector):
    """The `vllm:` series of one model, labelled as a server of that model alone would."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._registry = registry
        self._model = model

    def collect(self) -> Iterable[Metric]:
        dropped = set(UNIT_LABELS) - {"model_name"}
        for family in self._registry.collect():
            if not family.name.startswith("vllm:"):
                continue
            kept = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                if sample.labels.get("model") == self._model:
                    labels = {k: v for k, v in sample.labels.items() if k not in dropped}
                    kept.samples.append(sample._replace(labels=labels))
            if kept.samples:
                yield kept


def model_exposition(registry: CollectorRegistry, model: str) -> bytes:
    """What a model's own port answers on /metrics."""
    one = CollectorRegistry()
    one.register(_OneModel(registry, model))
    return generate_latest(one)
