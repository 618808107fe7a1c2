"""Which SM shares first fit gives: what the model allows, and what the device makes of it."""

import pytest

from mux_core.llm import Demand, Dtype, Llm, ModelGeometry, SharingPolicy
from mux_core.placement import GpuNode, Share
from mux_core.planners.first_fit import FirstFit
from mux_core.planning import PlacementProblem, best_plan
from mux_core.units import GIB, Bytes, ModelName, NodeName, Percent

GEOMETRY = ModelGeometry(
    architecture="LlamaForCausalLM", layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2,
    head_dim=16, vocab=256, max_model_len=512, dtype=Dtype.FLOAT32,
)  # fmt: skip


def share(gpu: str, sharing: SharingPolicy) -> Share:
    llm = Llm(name=ModelName("a"), weight_bytes=GEOMETRY.weight_bytes, geometry=GEOMETRY,
              demand=Demand(rate=1), sharing=sharing)  # fmt: skip
    node = GpuNode(name=NodeName("n"), gpus=1, memory=Bytes(GIB), gpu=gpu)
    plan = best_plan(FirstFit(), PlacementProblem(now=0, nodes=(node,), llms=(llm,)))
    ((_, member),) = plan.proposed.members()
    return member.share


@pytest.mark.parametrize(
    ("gpu", "sharing", "prefill", "decode"),
    [
        pytest.param("h100", SharingPolicy(), 100, 50, id="a prefill fills a GPU"),
        pytest.param("cpu", SharingPolicy(), 50, 50, id="a prefill does not fill a CPU"),
        pytest.param("cpu", SharingPolicy(exclusive=True), 100, 100, id="exclusive: everything"),
        pytest.param("cpu", SharingPolicy(min_percent=Percent(80)), 80, 80, id="the floor holds"),
        pytest.param("h100", SharingPolicy(max_percent=Percent(30)), 30, 30, id="so does the cap"),
        pytest.param("cpu", SharingPolicy(max_percent=Percent(33)), 33, 33, id="on a CPU too"),
    ],
)
def test_shares(gpu: str, sharing: SharingPolicy, prefill: int, decode: int) -> None:
    assert share(gpu, sharing) == Share(prefill=Percent(prefill), decode=Percent(decode))
