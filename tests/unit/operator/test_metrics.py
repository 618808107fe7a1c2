"""The operator's series: what is told is shown, what is gone disappears."""

from dataclasses import replace

from prometheus_client import generate_latest

from decide_world import KEY, World, llm
from mux_core.llm import Slo
from mux_core.status import Figures, MeasuredDemand, StatusReport
from mux_core.units import ModelName
from mux_operator.metrics import Metrics


def page(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_conditions_and_rates_of_models_are_shown_until_they_are_gone() -> None:
    world, metrics = World(), Metrics()
    world.add(llm("a"), llm("b"))
    world.settle()
    metrics.told(KEY, world.report(), {"a": ("RuntimeCounters", 1.5)})
    labels = 'model="a",namespace="ns",pool="default"'
    assert f'muxserve_model_request_rate{{{labels},source="RuntimeCounters"}} 1.5' in page(metrics)
    assert f'muxserve_model_condition{{{labels},type="Ready"}} 1.0' in page(metrics)
    assert f'muxserve_model_condition{{{labels},type="ShareVerified"}} -1.0' in page(metrics)
    del world.llms["a"]
    world.settle()
    metrics.told(KEY, world.report(), {})
    assert 'model="a"' not in page(metrics)
    assert 'model="b"' in page(metrics)


def test_the_pool_is_counted() -> None:
    world, metrics = World(slots=3), Metrics()
    world.add(llm("a"))
    world.settle()
    metrics.told(KEY, world.report(), {})
    for state, count in (("total", 3), ("used", 1), ("free", 2)):
        wanted = f'muxserve_pool_gpus{{namespace="ns",pool="default",state="{state}"}} {count}.0'
        assert wanted in page(metrics)


def test_what_is_asked_of_a_model_and_the_age_of_its_rate_are_shown() -> None:
    world, metrics, item = World(), Metrics(), llm("a")
    assert item.spec is not None
    slo = Slo(ttft_s=0.5, tpot_s=0.05, objective=0.995)
    world.add(replace(item, spec=replace(item.spec, slo=slo)), llm("b"))
    world.settle()
    known = MeasuredDemand(rate=2.0, source="RuntimeCounters", as_of=world.seen.now - 40)
    snapshot = replace(world.snapshot(), demand={"a": known})
    metrics.asked(KEY, snapshot)
    shown = page(metrics)
    labels = 'model="a",namespace="ns",pool="default"'
    assert f"muxserve_model_demand_age_seconds{{{labels}}} 40.0" in shown
    assert f"muxserve_model_slo_objective_ratio{{{labels}}} 0.995" in shown
    assert f'muxserve_model_slo_target_seconds{{{labels},signal="ttft"}} 0.5' in shown
    assert f'muxserve_model_slo_target_seconds{{{labels},signal="tpot"}} 0.05' in shown
    assert 'model="b"' not in shown, "nothing asked, nothing measured, nothing shown"

    world.llms["a"] = replace(world.llms["a"], spec=item.spec)
    metrics.asked(KEY, world.snapshot())
    assert "muxserve_model_slo_target_seconds{" not in page(metrics)


def test_a_plan_has_an_age_and_an_objective_until_there_is_none() -> None:
    world, metrics = World(slots=2), Metrics()
    world.add(llm("a"))
    world.look()
    snapshot, question, choice = world.plan()
    metrics.planned(KEY, question, choice, snapshot.now - 12)
    labels = 'namespace="ns",pool="default"'
    assert f"muxserve_plan_age_seconds{{{labels}}} 12.0" in page(metrics)
    for kind, count in (("current", 0), ("proposed", 1)):
        pair = f'kind="{kind}",{labels}'
        assert f"muxserve_plan_objective{{{pair}}} {count}.0" in page(metrics)
    assert f"muxserve_plan_awaiting_approval{{{labels}}} 0.0" in page(metrics)
    metrics.unplanned(KEY)
    assert "muxserve_plan_age_seconds{" not in page(metrics)
    assert "muxserve_plan_objective{" not in page(metrics)


def test_predicted_and_observed_figures_are_shown_until_they_are_not_known() -> None:
    world, metrics = World(), Metrics()
    world.add(llm("a", served_name="chat"), llm("b"))
    world.settle()
    status = replace(world.status("a"), predicted=Figures(rate=2.0, ttft_mean_s=0.2,
                                                          attainment=0.99))  # fmt: skip
    report = StatusReport(llms={ModelName("a"): status})
    observed = Figures(rate=2.1, attainment=0.9, ttft_mean_s=0.3, tpot_p99_s=0.04)
    metrics.compared(KEY, report, {ModelName("a"): observed})
    shown = page(metrics)
    labels = 'model="a",model_name="chat",mux_namespace="ns",pool="default"'
    latency = "muxserve_model_latency_seconds"
    for line in (
        f"muxserve_plan_prediction_error_ratio{{{labels}}} -0.08999999999999997",
        f'muxserve_model_slo_attainment_ratio{{kind="predicted",{labels}}} 0.99',
        f'muxserve_model_slo_attainment_ratio{{kind="observed",{labels}}} 0.9',
        f'{latency}{{kind="predicted",{labels},signal="ttft",stat="mean"}} 0.2',
        f'{latency}{{kind="observed",{labels},signal="tpot",stat="p99"}} 0.04',
    ):
        assert line in shown
    assert f'{latency}{{kind="predicted",{labels},signal="tpot"' not in shown
    metrics.compared(KEY, report, {})
    assert 'kind="observed"' not in page(metrics)
    assert "prediction_error_ratio{" not in page(metrics)
    metrics.compared(KEY, StatusReport(), {})
    assert 'model="a"' not in page(metrics)
