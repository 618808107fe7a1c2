"""Which shares members of a unit get: what the models allow, what the device makes of it."""

import pytest

from mux_core.llm import Demand, Dtype, Llm, ModelGeometry, SharingPolicy
from mux_core.placement import GpuNode, Share
from mux_core.planners.default import DefaultPlanner
from mux_core.planning import PlacementProblem, PlanningPolicy, best_plan
from mux_core.units import GIB, Bytes, ModelName, NodeName, Percent

GEOMETRY = ModelGeometry(
    architecture="LlamaForCausalLM", layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2,
    head_dim=16, vocab=256, max_model_len=512, dtype=Dtype.FLOAT32,
)  # fmt: skip


def an_llm(name: str, rate: float = 1.0, sharing: SharingPolicy | None = None) -> Llm:
    return Llm(name=ModelName(name), weight_bytes=GEOMETRY.weight_bytes, geometry=GEOMETRY,
               demand=Demand(rate=rate), sharing=sharing or SharingPolicy())  # fmt: skip


def shares(gpu: str, *llms: Llm) -> list[tuple[int, int]]:
    node = GpuNode(name=NodeName("n"), gpus=1, memory=Bytes(80 * GIB), gpu=gpu)
    policy = PlanningPolicy(best_effort=True)
    problem = PlacementProblem(now=0, nodes=(node,), llms=llms, policy=policy)
    plan = best_plan(DefaultPlanner(), problem)
    found: list[Share] = [member.share for _, member in plan.proposed.members()]
    assert len(found) == len(llms)
    return [(share.prefill, share.decode) for share in found]


@pytest.mark.parametrize(
    ("gpu", "sharing", "prefill", "decode"),
    [
        pytest.param("h100", SharingPolicy(), 100, 100, id="one alone has the GPU"),
        pytest.param("cpu", SharingPolicy(), 50, 50, id="a step does not fill a CPU"),
        pytest.param("cpu", SharingPolicy(exclusive=True), 100, 100, id="exclusive: everything"),
        pytest.param("cpu", SharingPolicy(min_percent=Percent(80)), 80, 80, id="the floor holds"),
        pytest.param("h100", SharingPolicy(max_percent=Percent(30)), 30, 30, id="so does the cap"),
        pytest.param("cpu", SharingPolicy(max_percent=Percent(33)), 33, 33, id="on a CPU too"),
    ],
)
def test_one_member(gpu: str, sharing: SharingPolicy, prefill: int, decode: int) -> None:
    assert shares(gpu, an_llm("a", sharing=sharing)) == [(prefill, decode)]


@pytest.mark.parametrize("gpu", ["cpu", "h100"])
@pytest.mark.parametrize("count", [2, 3, 5, 8, 20])
def test_decodes_of_a_unit_fit_side_by_side(gpu: str, count: int) -> None:
    found = shares(gpu, *(an_llm(f"m{n:02}") for n in range(count)))
    assert sum(decode for _, decode in found) <= 100
    assert min(decode for _, decode in found) >= 100 // max(count, 10)


def test_on_a_cpu_any_prefill_runs_beside_any_decode() -> None:
    found = shares("cpu", an_llm("busy", 20.0), an_llm("idle", 0.0), an_llm("quiet", 0.1))
    assert [prefill for prefill, _ in found] == [50, 50, 50]
    busy, idle, quiet = (decode for _, decode in found)
    assert busy == 50
    assert max(idle, quiet) < busy
