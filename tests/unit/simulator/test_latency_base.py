"""What scale 1 allows."""

import numpy as np
import pytest

from mux_core.errors import SpecError
from mux_core.llm import Dtype, Llm, ModelGeometry, Slo
from mux_core.simulator.latency_base import latency_base
from mux_core.units import GIB, Bytes
from planner_builders import an_llm, nodes

TINY = ModelGeometry(
    architecture="LlamaForCausalLM", layers=16, hidden=2048, intermediate=8192, heads=32,
    kv_heads=8, head_dim=64, vocab=128256, max_model_len=4096, dtype=Dtype.BFLOAT16,
)  # fmt: skip


def base_of(llm):
    return latency_base(llm, nodes(1), {})


def test_of_a_llama_it_is_what_muxserve_measured_between_its_lengths():
    base = base_of(an_llm("a", "llama-7b"))
    found = base.ttft(np.array([16.0, 32.0, 96.0, 512.0, 768.0]))
    between = (0.014129 + 0.016023) / 2
    beyond = 0.041027 + (0.041027 - 0.023747)
    assert found == pytest.approx([0.014082, 0.014082, between, 0.041027, beyond])
    assert base.tpot == pytest.approx(0.01138573, abs=1e-7)


def test_muxserves_end_to_end_rule_takes_a_short_prefill_for_middling_prompts():
    base = base_of(an_llm("a", "llama-7b"))
    found = base.end_to_end(np.array([32.0, 64.0, 65.0, 511.0, 512.0]), np.full(5, 100.0))
    prefill = found - 100 * base.decode_s
    assert prefill == pytest.approx([0.014082, 0.014129, 0.014082, 0.014082, 0.041027])


@pytest.mark.parametrize(
    ("slo", "ttft", "tpot"),
    [(Slo(ttft_s=0.5, tpot_s=0.05), 0.5, 0.05), (Slo(ttft_s=0.5), 0.5, float("inf")),
     (Slo(tpot_s=0.05), float("inf"), 0.05)],
    ids=["both", "first token only", "tokens only"],
)  # fmt: skip
def test_own_targets_come_first(slo, ttft, tpot):
    base = base_of(an_llm("a", slo=slo))
    assert base.ttft(np.array([32.0, 900.0])).tolist() == [ttft, ttft]
    assert base.tpot == tpot
    assert base.decode_s == pytest.approx(0.0113857, abs=1e-6)


def test_without_a_measurement_it_is_the_profile_alone_on_the_fewest_gpus():
    llm = Llm(name="t", weight_bytes=TINY.weight_bytes, geometry=TINY, demand=an_llm("a").demand)
    base = base_of(llm)
    assert 0 < base.ttft(np.array([128.0]))[0] < base.ttft(np.array([2048.0]))[0] < 1
    assert 0 < base.tpot < 0.1


def test_weights_that_fit_nowhere_have_no_latency():
    llm = Llm(name="t", weight_bytes=Bytes(10_000 * GIB), geometry=TINY, demand=an_llm("a").demand)
    with pytest.raises(SpecError, match="its weights fit none of the degrees"):
        base_of(llm)
