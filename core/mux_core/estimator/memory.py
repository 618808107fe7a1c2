"""What LLMs take of a GPU group's memory and of a step's time: figures that depend on no load."""

from mux_core.estimator.muxserve import reference_model
from mux_core.estimator.unit import GroupKind
from mux_core.footprint import FLOOR_TOKENS, kv_floor, weight_floor
from mux_core.llm import Llm
from mux_core.units import GIB

RESERVE_BYTES = 2 * GIB
"""Per member and GPU: CUDA contexts of its two hosts, graphs and activations; to be measured."""
USABLE_FRACTION = 0.95


def room_bytes(kind: GroupKind) -> float:
    """Memory of a group that weights, reserves and KV may take."""
    fraction = 1.0 if kind.gpu == "cpu" else USABLE_FRACTION
    return fraction * kind.gpus * kind.memory


def fixed_bytes(llm: Llm, kind: GroupKind) -> float:
    """What a member takes of its group whatever it serves: weights and reserve."""
    reserve = 0 if kind.gpu == "cpu" else RESERVE_BYTES * kind.gpus
    return weight_floor(llm, tensor=kind.gpus) * kind.gpus + reserve


def kv_floor_bytes(llm: Llm, kind: GroupKind) -> float:
    """KV that is always the member's."""
    if llm.geometry is not None:
        return kv_floor(llm, tensor=kind.gpus) * kind.gpus
    return max(float(llm.sharing.kv_request), FLOOR_TOKENS * kv_per_token(llm))


def kv_per_token(llm: Llm) -> float:
    """Bytes of K and V of one token, over all GPUs."""
    if llm.geometry is not None:
        return llm.geometry.kv_bytes_per_token
    return reference_model(llm.profile or "").kv_gb_per_token * GIB


def overhead_s(llm: Llm) -> float:
    """Scheduling per sequence and step: as released for the shipped tables, else half of that.

    Costs that were measured, or fitted to what was, hold what a unit adds to a step already.
    """
    if llm.profile is None:
        return 5e-5
    return reference_model(llm.profile).overhead_s if llm.geometry is None else 0.0
