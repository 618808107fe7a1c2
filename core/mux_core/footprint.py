"""What one replica holds of each of its GPUs whatever it serves: weights and a KV floor.

Counted as the runtime counts: in whole head units, the floor in whole rows of the model's layout.
"""

import math
from functools import cache
from typing import Final

from mux_core.engine import KVGeometry, kv_geometry
from mux_core.llm import Llm, ModelGeometry
from mux_core.unitspec import UNIT_BYTES

FLOOR_TOKENS: Final = 2048
"""KV floor of a model that asks for none: room for one such sequence, or its longest."""


def weight_floor(llm: Llm, *, tensor: int) -> int:
    """Bytes of weights on each GPU."""
    return _whole(math.ceil(llm.weight_bytes / tensor), UNIT_BYTES)


def kv_floor(llm: Llm, *, tensor: int) -> int:
    """KV bytes of each GPU that are always the model's: asked for, or one sequence.

    Raises SpecError for a geometry without a KV layout.
    """
    request = math.ceil(llm.sharing.kv_request / tensor)
    if llm.geometry is None:
        return _whole(request, UNIT_BYTES)
    layout = _layout(llm.geometry, tensor)
    row_bytes = layout.row_units * UNIT_BYTES
    longest = layout.rows_for(min(llm.geometry.max_model_len, FLOOR_TOKENS)) * row_bytes
    return _whole(request, row_bytes) or longest


@cache
def _layout(shape: ModelGeometry, tensor: int) -> KVGeometry:
    return kv_geometry(layers=shape.layers, kv_heads=max(1, shape.kv_heads // tensor),
                       head_dim=shape.head_dim, dtype=shape.dtype,
                       unit_bytes=UNIT_BYTES)  # fmt: skip


def _whole(size: int, part: int) -> int:
    return math.ceil(size / part) * part
