"""The front's series: names, labels, buckets, and what goes when a model goes."""

from prometheus_client import CollectorRegistry, generate_latest

from mux_runtime.front.meter import Meter
from mux_runtime.front.metrics import Finished, FrontMetrics, model_exposition
from mux_runtime.gateway.metrics import GatewayMetrics
from mux_runtime.generation import ServedModel
from mux_runtime.openai import buckets
from mux_runtime.openai.series import MAX_MODELS, OTHER, Judged, ModelLabels, SloResult, SloTargets

MODEL = ServedModel(
    model="alpha-llm", served_name="alpha", path="", port=0, max_model_len=8, kv_limit_tokens=8,
    vocab=9, eos_token_ids=(0,), slo_ttft_s=1.0, slo_tpot_s=0.5,
)  # fmt: skip
FORBIDDEN = {"namespace", "pod", "instance", "job", "container", "node", "service", "endpoint"}
M = {"mux_namespace": "ns", "pool": "p", "model": "alpha-llm", "model_name": "alpha"}
MU = {**M, "unit": "u0"}


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def front_metrics() -> FrontMetrics:
    return FrontMetrics(CollectorRegistry(), namespace="ns", pool="p", unit="u0")


def run(metrics: FrontMetrics, *, gaps: tuple[float, ...], end: Finished = Finished.STOP,
        first_hop: bool = True) -> None:  # fmt: skip
    """One request whose tokens come after `gaps` seconds."""
    clock = Clock()
    meter = Meter(metrics, MODEL, clock=clock, arrival=clock.now, first_hop=first_hop)
    for gap in gaps:
        clock.now += gap
        meter.step(1, prompt_tokens=5)
    meter.end(end)
    meter.end(Finished.ABORT)


def value(metrics: FrontMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {**MU, **labels})


def test_a_request_is_measured_once() -> None:
    metrics = front_metrics()
    run(metrics, gaps=(0.25, 0.1, 0.2))
    assert value(metrics, "vllm:time_to_first_token_seconds_sum") == 0.25
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 2
    tpot = value(metrics, "vllm:request_time_per_output_token_seconds_sum")
    assert tpot is not None
    assert round(tpot, 6) == 0.15
    assert value(metrics, "vllm:prompt_tokens_total") == 5
    assert value(metrics, "vllm:generation_tokens_total") == 3
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 1
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") is None


def test_the_slo_result_of_each_request_is_counted_exactly() -> None:
    metrics = front_metrics()
    run(metrics, gaps=(1.0, 0.5))
    run(metrics, gaps=(1.5, 0.9))
    run(metrics, gaps=(0.1, 0.75))
    run(metrics, gaps=(0.1,), end=Finished.ERROR)
    run(metrics, gaps=(0.1,), end=Finished.ABORT)
    run(metrics, gaps=(9.0,), first_hop=False)
    found = {
        result.value: metrics.registry.get_sample_value(
            "muxserve_model_slo_requests_total", {**M, "hop": "unit", "result": result.value}
        )
        for result in SloResult
    }
    assert found == {"good": 1, "ttft_late": 1, "tpot_late": 1, "error": 1}
    assert metrics.first_hop.judged == {M["model"]: Judged(judged=4, met=1)}
    metrics.forget(M["model"])
    assert metrics.first_hop.judged == {}, "it counts from zero when it comes back"


def test_a_model_without_targets_is_not_judged() -> None:
    assert not SloTargets().any
    assert SloTargets(tpot_s=1.0).judge(ttft_s=99.0, tpot_s=0.5, failed=False) is SloResult.GOOD


def test_names_and_labels_are_as_documented() -> None:
    metrics = front_metrics()
    gateway = GatewayMetrics(CollectorRegistry(), namespace="ns", pool="p")
    families = [*metrics.registry.collect(), *gateway.registry.collect()]
    assert {family.name for family in families} == {
        "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
        "vllm:request_time_per_output_token_seconds", "vllm:e2e_request_latency_seconds",
        "vllm:prompt_tokens", "vllm:generation_tokens", "vllm:request_success",
        "muxserve_model_requests", "muxserve_model_ttft_seconds", "muxserve_model_slo_requests",
        "muxserve_gateway_responses", "muxserve_gateway_rejected", "muxserve_model_held_requests",
        "muxserve_gateway_inflight_requests", "muxserve_gateway_hold_seconds",
        "muxserve_gateway_streams_cut", "muxserve_build_info",
    }  # fmt: skip


def test_no_label_belongs_to_the_scraper() -> None:
    metrics = front_metrics()
    run(metrics, gaps=(0.1,))
    labels = {
        name for family in metrics.registry.collect() for s in family.samples for name in s.labels
    }
    assert not labels & FORBIDDEN
    assert labels >= set(MU)


def test_no_series_is_doubled_by_its_time_of_creation() -> None:
    metrics = front_metrics()
    run(metrics, gaps=(0.1,))
    assert b"_created" not in generate_latest(metrics.registry)


def test_buckets_are_vllm_s() -> None:
    metrics = front_metrics()
    run(metrics, gaps=(0.1, 0.1))
    for name, edges in (
        ("vllm:time_to_first_token_seconds", buckets.TTFT),
        ("vllm:inter_token_latency_seconds", buckets.PER_TOKEN),
        ("vllm:e2e_request_latency_seconds", buckets.REQUEST),
    ):
        found = [
            float(sample.labels["le"])
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == f"{name}_bucket"
        ]
        assert tuple(found[:-1]) == edges
    assert buckets.TTFT[0] == 0.001
    assert buckets.TTFT[-1] == 2560.0


def test_a_model_s_own_port_shows_vllm_s_labels_alone() -> None:
    metrics = front_metrics()
    run(metrics, gaps=(0.1,))
    text = model_exposition(metrics.registry, "alpha-llm").decode()
    assert 'vllm:generation_tokens_total{model_name="alpha"} 1.0' in text
    assert "muxserve_" not in text
    assert "unit=" not in text
    assert model_exposition(metrics.registry, "beta-llm") == b""


def test_a_model_takes_its_series_along() -> None:
    metrics = front_metrics()
    run(metrics, gaps=(0.1, 0.1))
    metrics.first_hop.arrived(MODEL.model, MODEL.served_name)
    metrics.forget(MODEL.model)
    assert b"alpha" not in generate_latest(metrics.registry)


def test_beyond_the_cap_models_share_one_name() -> None:
    labels = ModelLabels(namespace="ns", pool="p")
    for index in range(MAX_MODELS):
        labels.of(f"m{index}", f"m{index}")
    assert labels.of("more", "more") == ("ns", "p", OTHER, OTHER)
    labels.forget("m0")
    assert labels.of("more", "more") == ("ns", "p", "more", "more")
