import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux_core.engine import kv_geometry
from mux_core.errors import SpecError


@pytest.mark.parametrize(
    ("head_dim", "dtype", "tokens"),
    [
        (64, "bfloat16", 128),
        (128, "bfloat16", 64),
        (256, "bfloat16", 32),
        (32, "float32", 128),
        (96, "bfloat16", 64),
    ],
)
def test_a_16_kib_unit_holds_a_power_of_two_of_tokens(
    head_dim: int, dtype: str, tokens: int
) -> None:
    geometry = kv_geometry(layers=2, kv_heads=2, head_dim=head_dim, dtype=dtype, unit_bytes=16384)
    assert geometry.block_tokens == tokens


def test_a_unit_too_small_for_one_token_is_refused() -> None:
    with pytest.raises(SpecError, match="holds no token of head_dim 128"):
        kv_geometry(layers=1, kv_heads=1, head_dim=128, dtype="float32", unit_bytes=256)


@given(st.integers(1, 80), st.integers(1, 64), st.integers(1, 5000))
def test_a_row_has_one_run_per_layer(layers: int, kv_heads: int, tokens: int) -> None:
    geometry = kv_geometry(
        layers=layers, kv_heads=kv_heads, head_dim=64, dtype="bfloat16", unit_bytes=16384
    )
    assert geometry.row_runs == layers
    assert geometry.row_units == layers * geometry.run_units
    assert (
        (geometry.rows_for(tokens) - 1) * geometry.block_tokens
        < tokens
        <= geometry.rows_for(tokens) * geometry.block_tokens
    )
