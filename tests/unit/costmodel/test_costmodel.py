"""Tables, smoothing, interpolation and the roofline."""

from itertools import pairwise

import pytest

from mux_core.costmodel.hardware import GPU_TYPES, gpu_type
from mux_core.costmodel.profile import Profile
from mux_core.costmodel.roofline import roofline_table
from mux_core.costmodel.smoothing import GROSS, smooth
from mux_core.costmodel.table import shipped_tables
from mux_core.errors import SpecError
from mux_core.llm import Dtype, ModelGeometry

LLAMA_7B = ModelGeometry(architecture="LlamaForCausalLM", layers=32, hidden=4096,
                         intermediate=11008, heads=32, kv_heads=32, head_dim=128, vocab=32000,
                         max_model_len=2048, dtype=Dtype.FLOAT16)  # fmt: skip


def test_the_shipped_tables_hold_every_profiled_degree():
    tables = shipped_tables()
    assert {name: table.tensors for name, table in tables.items()} == {
        "llama-7b": (1, 2, 4, 8), "llama-13b": (1, 2, 4, 8), "llama-30b": (2, 4),
        "llama-65b": (4, 8),
    }  # fmt: skip
    with pytest.raises(SpecError, match="tensor 8 at 30%"):
        tables["llama-30b"].rows(8, 30)


def test_smoothing_leaves_no_gross_outlier_and_touches_few_values():
    for table in shipped_tables().values():
        after = smooth(table)
        changed = total = 0
        for key, rows in after.cells.items():
            known = {(row.batch, row.tokens): row.decode_s for row in rows}
            batches = sorted({row.batch for row in rows})
            for low, high in pairwise(batches):
                for tokens in {row.tokens for row in rows}:
                    a, b = known.get((low, tokens)), known.get((high, tokens))
                    assert not (a and b) or a <= GROSS * b + 1e-12
            total += len(rows)
            changed += sum(a != b for a, b in zip(rows, table.cells[key], strict=True))
        assert changed <= 0.03 * total


def test_a_profile_interpolates_between_measured_points():
    profile = Profile(smooth(shipped_tables()["llama-7b"]))

    def decode(batch, percent=100, context=256.0):
        return profile.decode_s(tensor=1, percent=percent, batch=batch, context=context)

    assert decode(16) < decode(24) < decode(32)
    assert decode(128, 60) < decode(128, 55) < decode(128, 50)
    assert decode(32, 10) > decode(32, 30)


@pytest.mark.parametrize("gpu", sorted(GPU_TYPES))
def test_every_data_sheet_gives_a_full_table_that_grows_with_work(gpu):
    table = roofline_table(LLAMA_7B, gpu)
    assert table.tensors == (1, 2, 4, 8)
    rows = {(r.batch, r.tokens): r for r in table.rows(1, 100)}
    assert rows[256, 512].decode_s > rows[1, 512].decode_s
    assert rows[64, 512].prefill_s > rows[64, 128].prefill_s
    slower = {(r.batch, r.tokens): r for r in table.rows(1, 30)}
    assert slower[256, 512].decode_s >= rows[256, 512].decode_s


def test_the_roofline_stays_near_the_measured_a100():
    measured = {(r.batch, r.tokens): r for r in smooth(shipped_tables()["llama-7b"]).rows(1, 100)}
    analytic = {(r.batch, r.tokens): r for r in roofline_table(LLAMA_7B, "a100-80gb").rows(1, 100)}
    for batch in (1, 16, 64, 128):
        assert analytic[batch, 256].decode_s == pytest.approx(
            measured[batch, 256].decode_s, rel=0.35
        )
        assert analytic[batch, 256].prefill_s == pytest.approx(
            measured[batch, 256].prefill_s, rel=0.35
        )


def test_an_unknown_gpu_names_the_known_ones():
    assert gpu_type("H100").name == "h100-80gb"
    assert gpu_type("NVIDIA-A100-SXM4-40GB").name == "a100-40gb"
    assert gpu_type("NVIDIA-A100-SXM4-80GB").name == gpu_type("a100").name == "a100-80gb"
    with pytest.raises(SpecError, match="no data sheet; one of a100-40gb"):
        gpu_type("tpu")
