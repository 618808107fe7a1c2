"""What one replica holds of each of its GPUs whatever it serves: weights and a KV floor.

Counted as the runtime counts: in whole head units, the floor in whole rows of the model's layout.
"""

import math
from functools import cache
from typing import Final

from mux_core.engine import KVGeometry, kv_geometry
from mux_core.errors import SpecError
from mux_core.llm import Llm, ModelGeometry
from mux_core.unitspec import UNIT_BYTES

FLOOR_TOKENS: Final = 2048
"""KV floor of a model that asks for none: room for one such sequence, or its longest."""


def weight_floor(llm: Llm, *, tensor: int) -> int:
    """Bytes of weights on each GPU."""
    return _whole(math.ceil(llm.weight_bytes / tensor), UNIT_BYTES)


def kv_floor(llm: Llm, *, tensor: int) -> int:
    """KV bytes of each GPU that are always the model's: asked for, or one sequence."""
    request = math.ceil(llm.sharing.kv_request / tensor)
    if llm.geometry is None:
        return _whole(request, UNIT_BYTES)
    row_bytes, row_tokens = _row(llm.geometry, tensor)
    rows = math.ceil(min(llm.geometry.max_model_len, FLOOR_TOKENS) / row_tokens)
    return _whole(request, row_bytes) or rows * row_bytes


def layout_error(llm: Llm, *, tensor: int) -> str:
    """Why the KV of a geometry cannot be laid out on so many GPUs; empty when it can."""
    try:
        if llm.geometry is not None:
            _layout(llm.geometry, tensor)
    except SpecError as error:
        return str(error)
    return ""


@cache
def _row(shape: ModelGeometry, tensor: int) -> tuple[int, int]:
    """Bytes and tokens of a row; a geometry without a layout counts one token a row."""
    try:
        layout = _layout(shape, tensor)
    except SpecError:
        return shape.kv_bytes_per_token, 1
    return layout.row_units * UNIT_BYTES, layout.block_tokens


def _layout(shape: ModelGeometry, tensor: int) -> KVGeometry:
    return kv_geometry(layers=shape.layers, kv_heads=max(1, shape.kv_heads // tensor),
                       head_dim=shape.head_dim, dtype=shape.dtype,
                       unit_bytes=UNIT_BYTES)  # fmt: skip


def _whole(size: int, part: int) -> int:
    return math.ceil(size / part) * part
