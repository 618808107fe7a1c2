"""The KV of a simulated unit: how many head units there are, and how LLMs lay rows into them.

One account over all GPUs of the unit: with tensor parallelism every rank holds its part of the
same rows, so only the sum matters. That free units may lie in pieces too small for a row is not
modelled; the product packs them.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Final

from mux_core.engine import kv_geometry
from mux_core.errors import SpecError
from mux_core.estimator.memory import fixed_bytes, kv_per_token, room_bytes
from mux_core.estimator.unit import GroupKind
from mux_core.llm import Llm
from mux_core.placement import Unit
from mux_core.units import ModelName

Llms = Mapping[ModelName, Llm]
KvRule = Callable[[Unit, GroupKind, Llms], float]
"""Bytes of KV a unit has over all its GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLayout:
    """A row of one LLM: `row_units` head units over all GPUs for `block_tokens` tokens."""

    row_units: int
    block_tokens: int


def row_layout(llm: Llm, kind: GroupKind, *, unit_bytes: int, block_tokens: int) -> RowLayout:
    """Rows of a known geometry as the product lays them; else blocks of `block_tokens`."""
    shape = llm.geometry
    if shape is None:
        row_bytes = block_tokens * kv_per_token(llm)
        return RowLayout(row_units=ceil(row_bytes / unit_bytes), block_tokens=block_tokens)
    rank = kv_geometry(
        layers=shape.layers, kv_heads=max(1, shape.kv_heads // kind.gpus),
        head_dim=shape.head_dim, dtype=shape.dtype, unit_bytes=unit_bytes,
    )  # fmt: skip
    return RowLayout(row_units=rank.row_units * kind.gpus, block_tokens=rank.block_tokens)


def estimated_kv(unit: Unit, kind: GroupKind, llms: Llms) -> float:
    """What weights and reserves leave, as the estimator counts."""
    fixed = sum(fixed_bytes(llms[member.model], kind) for member in unit.members)
    return room_bytes(kind) - fixed


def planned_kv(unit: Unit, kind: GroupKind, llms: Llms) -> float:
    """What the plan divides among the members, whatever the estimator says of the unit."""
    return float(sum(member.kv.guaranteed for member in unit.members))


def _part_kv(part: float, unit: Unit, kind: GroupKind, llms: Llms) -> float:
    asked, left = part * kind.gpus * kind.memory, estimated_kv(unit, kind, llms)
    if asked > left:
        raise SpecError(f"KV {part:g} of unit {unit.id}'s memory is {asked / 1e9:.1f} GB; weights "
                        f"and reserves leave {left / 1e9:.1f} GB")  # fmt: skip
    return asked


KV_RULES: Final[Mapping[str, KvRule]] = {"estimated": estimated_kv, "planned": planned_kv}


def kv_rule(name: str) -> KvRule:
    """The rule of a name, `estimated` or `planned`, or of a number: that part of the GPUs' memory,
    as MuxServe gives it to LLMs that share nothing. Raises SpecError for any other.
    """
    if name in KV_RULES:
        return KV_RULES[name]
    with suppress(ValueError):
        part = float(name)
        if 0 < part < 1:
            return partial(_part_kv, part)
    raise SpecError(f"KV {name}: not {', '.join(sorted(KV_RULES))} and no part of GPU memory "
                    "between 0 and 1")  # fmt: skip


def kv_units(unit: Unit, kind: GroupKind, llms: Llms, rule: KvRule, *, unit_bytes: int) -> int:
    """Head units of the unit. Raises SpecError where the LLMs do not fit."""
    room = rule(unit, kind, llms)
    if room < unit_bytes:
        names = ", ".join(member.model for member in unit.members)
        raise SpecError(f"unit {unit.id}: {names} leave {room / 1e9:.1f} GB for KV on {kind.gpus} "
                        f"x {kind.gpu}; give it more GPUs or fewer LLMs")  # fmt: skip
    return int(room / unit_bytes)
