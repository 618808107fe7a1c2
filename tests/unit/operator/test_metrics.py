"""The operator's series: what is told is shown, what is gone disappears."""

from prometheus_client import generate_latest

from decide_world import KEY, World, llm
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
