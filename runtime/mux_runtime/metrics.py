"""The unit's own series, read from the scheduler when scraped, and the port they stand on.

Series of a GPU (identity, seconds, verified shares) appear only where there is one to measure.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mux_core.engine import Phase
from mux_core.errors import PeerError
from mux_core.lifecycle import MemberState
from mux_runtime.brain.members import UnitMembers
from mux_runtime.scheduler.members import Member

_U: Final = ("mux_namespace", "pool", "unit")
_MU: Final = ("mux_namespace", "pool", "model", "model_name", "unit")
VERSION: Final = "0.1.0"


class UnitCollector(Collector):
    """Everything the scheduler knows of itself and its members."""

    def __init__(self, members: UnitMembers) -> None:
        self._members = members

    def collect(self) -> Iterable[Metric]:
        yield from self._unit()
        yield from self._member_gauges()
        yield from self._member_counters()
        yield from self._vllm()

    @property
    def _unit_labels(self) -> tuple[str, ...]:
        spec = self._members.spec
        return spec.namespace, spec.pool, spec.unit

    def _labels(self, m: Member) -> tuple[str, ...]:
        namespace, pool, unit = self._unit_labels
        return namespace, pool, m.model, m.spec.served_name, unit

    def _each(self) -> Iterator[tuple[Member, tuple[str, ...]]]:
        for _, member in sorted(self._members.scheduler.members.items()):
            yield member, self._labels(member)

    def _unit(self) -> Iterable[Metric]:
        scheduler, unit = self._members.scheduler, self._unit_labels
        info = GaugeMetricFamily("muxserve_build_info", "Version of this process.",
                                 labels=("version", "component"))  # fmt: skip
        info.add_metric((VERSION, "unit"), 1)
        yield info
        size = scheduler.memory.unit_bytes
        kv = GaugeMetricFamily("muxserve_unit_kv_bytes", "KV memory of the unit.",
                               labels=(*_U, "gpu_uuid", "kind"))  # fmt: skip
        for kind, units in (("total", scheduler.memory.kv_units),
                            ("free", scheduler.allocator.free_units),
                            ("leased", scheduler.allocator.owned_units)):  # fmt: skip
            kv.add_metric((*unit, "", kind), units * size)
        yield kv
        generations = {"spec_generation": self._members.spec.generation,
                       "spec_applied_generation": self._members.applied_generation}  # fmt: skip
        for name, value in generations.items():
            gauge = GaugeMetricFamily(f"muxserve_unit_{name}", "Generation of the unit spec.",
                                      labels=_U)  # fmt: skip
            gauge.add_metric(unit, value)
            yield gauge
        yield from self._durations(unit)

    def _durations(self, unit: tuple[str, ...]) -> Iterable[Metric]:
        scheduler = self._members.scheduler
        steps = HistogramMetricFamily(
            "muxserve_unit_grant_duration_seconds", "From a grant to its result.",
            labels=(*_U, "phase"),
        )  # fmt: skip
        for phase, seen in scheduler.rounds.step_seconds.items():
            steps.add_metric((*unit, phase.value), seen.buckets(), seen.total)
        yield steps
        rounds = HistogramMetricFamily(
            "muxserve_unit_round_duration_seconds", "One scheduler decision.", labels=_U
        )
        decided = scheduler.rounds.decision_seconds
        rounds.add_metric(unit, decided.buckets(), decided.total)
        yield rounds
        overlap = CounterMetricFamily(
            "muxserve_unit_overlap_seconds", "Time by which steps ran together.",
            labels=(*_U, "pair"),
        )  # fmt: skip
        for pair, seconds in scheduler.rounds.overlap.until(time.monotonic()):
            overlap.add_metric((*unit, pair), seconds)
        yield overlap
        held = CounterMetricFamily("muxserve_unit_held", "Phases held in a round, by reason.",
                                   labels=(*_U, "reason"))  # fmt: skip
        for why, count in sorted(scheduler.rounds.holds.items()):
            held.add_metric((*unit, why.value), count)
        yield held
        bugs = CounterMetricFamily("muxserve_unit_invariant_violations",
                                   "Broken rules of our own, each a bug.", labels=_U)  # fmt: skip
        bugs.add_metric(unit, scheduler.rounds.bugs)
        yield bugs

    def _member_gauges(self) -> Iterable[Metric]:
        size = self._members.scheduler.memory.unit_bytes
        state = GaugeMetricFamily("muxserve_model_state", "1 for the state the model is in.",
                                  labels=(*_MU, "state"))  # fmt: skip
        percent = GaugeMetricFamily("muxserve_model_compute_percent", "SM share.",
                                    labels=(*_MU, "phase", "kind"))  # fmt: skip
        kv = GaugeMetricFamily("muxserve_model_kv_bytes", "KV memory of the model.",
                               labels=(*_MU, "kind"))  # fmt: skip
        weights = GaugeMetricFamily("muxserve_model_weights_bytes", "Weights, loaded once.",
                                    labels=_MU)  # fmt: skip
        for m, labels in self._each():
            for one in MemberState:
                state.add_metric((*labels, one.value), int(m.state is one))
            for phase in Phase:
                percent.add_metric((*labels, phase.value, "planned"), m.slots[phase].percent)
            used = m.units_used(self._members.scheduler.allocator)
            for kind, units in (("used", used), ("quota", m.quota), ("floor", m.floor),
                                ("limit", m.limit),
                                ("borrowed", max(0, used - m.floor))):  # fmt: skip
                kv.add_metric((*labels, kind), units * size)
            if m.card is not None:
                weights.add_metric(labels, m.card.weight_bytes)
        yield from (state, percent, kv, weights)

    def _member_counters(self) -> Iterable[Metric]:
        restarts = CounterMetricFamily("muxserve_model_engine_restarts", "Engine hosts restarted.",
                                       labels=(*_MU, "phase", "reason"))  # fmt: skip
        grants = CounterMetricFamily("muxserve_unit_grants", "Steps granted.",
                                     labels=(*_MU, "phase"))  # fmt: skip
        for m, labels in self._each():
            for phase in Phase:
                restarts.add_metric((*labels, phase.value, "died"), m.slots[phase].restarts)
                grants.add_metric((*labels, phase.value), m.counters.grants[phase])
        yield from (restarts, grants)

    def _vllm(self) -> Iterable[Metric]:
        """What an endpoint picker reads, under vLLM's names and with vLLM's meaning."""
        running = GaugeMetricFamily("vllm:num_requests_running", "Running requests.", labels=_MU)
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Queued requests.", labels=_MU)
        usage = GaugeMetricFamily(
            "vllm:kv_cache_usage_perc",
            "KV used of what the model may hold now, 0 to 1.",
            labels=_MU,
        )
        preempted = CounterMetricFamily("vllm:num_preemptions", "Preempted requests.", labels=_MU)
        for m, labels in self._each():
            used = m.units_used(self._members.scheduler.allocator)
            running.add_metric(labels, m.running)
            waiting.add_metric(labels, len(m.queue))
            usage.add_metric(labels, used / m.quota if m.quota else 0.0)
            preempted.add_metric(labels, m.counters.preempted)
        yield from (running, waiting, usage, preempted, self._cache_config())
        yield from self._request_times()
        yield from self._vllm_absent()

    def _cache_config(self) -> Metric:
        """Here the block count moves: it is what the model may hold now, as is the usage's base."""
        info = GaugeMetricFamily("vllm:cache_config_info",
                                 "Tokens per KV block, and blocks the model may hold now.",
                                 labels=(*_MU, "block_size", "num_gpu_blocks"))  # fmt: skip
        for m, labels in self._each():
            if m.card is not None:
                geometry = m.geometry
                blocks = m.quota // geometry.row_units
                info.add_metric((*labels, str(geometry.block_tokens), str(blocks)), 1)
        return info

    def _request_times(self) -> Iterable[Metric]:
        """Where the time of finished requests went, as the scheduler saw it."""
        for stage, what in (("queue", "Arrival at the scheduler to first grant."),
                            ("prefill", "First grant to first token."),
                            ("decode", "First to last token.")):  # fmt: skip
            family = HistogramMetricFamily(f"vllm:request_{stage}_time_seconds", what, labels=_MU)
            for m, labels in self._each():
                seen = {"queue": m.counters.queued, "prefill": m.counters.prefilled,
                        "decode": m.counters.decoded}[stage]  # fmt: skip
                family.add_metric(labels, seen.buckets(), seen.total)
            yield family

    def _vllm_absent(self) -> Iterable[Metric]:
        """What vLLM counts and no engine here does yet: 0, so that ratios find a series."""
        for name, what in (("queries", "looked up"), ("hits", "found")):
            family = CounterMetricFamily(f"vllm:prefix_cache_{name}",
                                         f"Prompt tokens {what} in a prefix cache; there is none.",
                                         labels=_MU)  # fmt: skip
            for _, labels in self._each():
                family.add_metric(labels, 0)
            yield family


async def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> web.AppRunner:
    """`/metrics` and `/health` on a port of their own."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry),
                            headers={"Content-Type": CONTENT_TYPE_LATEST})  # fmt: skip

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/health", health)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise PeerError(f"metrics port {host}:{port}: cannot listen ({error.strerror}); free it "
                        "or choose another") from error  # fmt: skip
    return runner
