"""How much KV a simulated unit has, and how LLMs lay rows into it."""

from dataclasses import replace

import pytest

from mux_core.errors import SpecError
from mux_core.estimator.queueing import QueueingUnits
from mux_core.estimator.unit import Ask, GroupKind
from mux_core.llm import Dtype, ModelGeometry
from mux_core.simulator.kv import estimated_kv, kv_rule, kv_units, planned_kv, row_layout
from mux_core.units import GIB, Bytes
from simulator_builders import llm, member, placed

SHAPE = ModelGeometry(architecture="LlamaForCausalLM", layers=32, hidden=4096, intermediate=14336,
                      heads=32, kv_heads=8, head_dim=128, vocab=128256, max_model_len=8192,
                      dtype=Dtype.BFLOAT16)  # fmt: skip


def kind(gpus: int) -> GroupKind:
    return GroupKind(gpus=gpus, gpu="a100-80gb", memory=Bytes(80 * GIB))


@pytest.mark.parametrize(
    ("profile", "head_blocks"),
    [("llama-7b", 1024), ("llama-13b", 1600), ("llama-30b", 3120), ("llama-65b", 5120)],
)
def test_a_row_holds_32_tokens_in_muxserves_head_blocks(profile: str, head_blocks: int) -> None:
    """Its head block holds K and V, ours one of the two."""
    layout = row_layout(llm("a", profile), kind(1), unit_bytes=8192, block_tokens=32)
    assert (layout.row_units, layout.block_tokens) == (2 * head_blocks, 32)


@pytest.mark.parametrize(("gpus", "row_units"), [(1, 512), (4, 512), (8, 512)])
def test_kv_heads_are_counted_over_all_gpus(gpus: int, row_units: int) -> None:
    known = replace(llm("a"), profile=None, geometry=SHAPE)
    layout = row_layout(known, kind(gpus), unit_bytes=8192, block_tokens=32)
    assert (layout.row_units, layout.block_tokens) == (row_units, 32)


def test_a_unit_has_what_the_estimator_leaves() -> None:
    """As much as the estimator divides among members, floors included."""
    models = {one.name: one for one in (llm("a"), llm("b", "llama-13b"))}
    (unit,) = placed([member("a"), member("b")]).units
    found = QueueingUnits().outcome(kind(1), [Ask(llm=one, rate=1.0) for one in models.values()])
    divided = sum(member.kv for member in found.members)
    assert estimated_kv(unit, kind(1), models) == pytest.approx(divided, rel=1e-6)


def test_a_plans_own_division_may_stand_instead() -> None:
    (unit,) = placed([member("a", kv_gib=3.0), member("b", kv_gib=4.0)]).units
    assert planned_kv(unit, kind(1), {}) == 7 * GIB


def test_a_unit_without_room_is_refused_by_name() -> None:
    models = {one.name: one for one in (llm("a", "llama-65b"),)}
    (unit,) = placed([member("a")]).units
    with pytest.raises(SpecError, match="unit u0: a leave"):
        kv_units(unit, kind(1), models, estimated_kv, unit_bytes=8192)


def test_a_rule_may_be_a_part_of_the_memory() -> None:
    (unit,) = placed([member("a")]).units
    llms = {"a": llm("a")}
    assert kv_rule("0.5")(unit, kind(1), llms) == 40 * GIB
    assert kv_rule("planned") is planned_kv
    with pytest.raises(SpecError, match=r"KV 0\.9 of unit u0's memory is 77\.3 GB; weights and"):
        kv_rule("0.9")(unit, kind(1), llms)


@pytest.mark.parametrize("name", ["half", "0", "1", "-0.5", "nan", ""])
def test_other_rules_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"not estimated, planned and no part of GPU memory"):
        kv_rule(name)
