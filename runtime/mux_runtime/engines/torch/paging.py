"""The KV arena as a tensor: where a token's K and V of a layer and head lie.

The arena is seen as `[units, block_tokens, head_dim]`. K of head `h` lies in unit
`run + 2h`, V in the next (`gpu.md`'s view). A *table* holds the K units of rows:
`[rows, layers, kv_heads]`; an engine makes it once per row it takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mux_core.engine import KVGeometry, Row
from mux_runtime.engines.host import GeometryMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Where the tokens of one step go: K unit by `[token, layer, head]`, offset by `[token, 1]`."""

    units: torch.Tensor
    offsets: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How much of several requests is written: the longest, and what lies beyond the others.

    `beyond` is `[request, 1, position, 1]` for positions from the shortest on; None if all are
    of one length.
    """

    longest: int
    shortest: int
    beyond: torch.Tensor | None


def lengths_of(tokens: Sequence[int], device: torch.device) -> Lengths:
    longest, shortest = max(tokens), min(tokens)
    if longest == shortest:
        return Lengths(longest=longest, shortest=shortest, beyond=None)
    positions = torch.arange(shortest, longest, device=device)
    beyond = positions >= torch.tensor(tokens, device=device).unsqueeze(1)
    return Lengths(longest=longest, shortest=shortest, beyond=beyond[:, None, :, None])


class PagedKv:
    """Reads and writes the KV of one model in the arena. Takes and frees no rows."""

    def __init__(self, memory: torch.Tensor, geometry: KVGeometry, unit_bytes: int) -> None:
        """`memory` is the whole arena, flat, in the geometry's dtype."""
        g = geometry
        if g.run_units % 2 or 2 * g.kv_heads % g.run_units:
            raise GeometryMismatch(f"KV geometry: runs of {g.run_units} units for {g.kv_heads} KV "
                                   "heads; a run holds whole pairs of K and V")  # fmt: skip
        self.geometry = geometry
        self.device = memory.device
        self.units = memory.numel() * g.itemsize // unit_bytes
        shape = (self.units, g.block_tokens, g.head_dim)
        self._memory = memory.as_strided(shape, (unit_bytes // g.itemsize, g.head_dim, 1))
        pairs = torch.arange(g.layers * g.kv_heads, device=self.device) * 2
        self._run, self._inside = pairs // g.run_units, pairs % g.run_units

    def table(self, rows: Sequence[Row]) -> torch.Tensor:
        """K units of `rows`: `[rows, layers, kv_heads]`."""
        g = self.geometry
        runs = torch.tensor(rows, dtype=torch.int64, device=self.device)
        return (runs[:, self._run] + self._inside).view(len(rows), g.layers, g.kv_heads)

    def slots(self, tables: torch.Tensor, owners: torch.Tensor, positions: torch.Tensor) -> Slots:
        """Where tokens at `positions` of the requests `owners` of `tables` go."""
        block = self.geometry.block_tokens
        return Slots(units=tables[owners, positions // block],
                     offsets=(positions % block).unsqueeze(1))  # fmt: skip

    def write(self, layer: int, slots: Slots, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores K and V `[token, head, head_dim]` of one layer."""
        units = slots.units[:, layer]
        self._memory[units, slots.offsets] = key
        self._memory[units + 1, slots.offsets] = value

    def gather(
        self, layer: int, tables: torch.Tensor, lengths: Lengths
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies K and V of several requests: `[request, head, longest, head_dim]` each.

        `tables` is `[request, rows, layers, heads]`. What lies beyond a request's length is zeros:
        free memory may hold anything, and not even a weight of zero undoes a NaN.
        """
        units = tables[:, :, layer]
        key, value = self._copy(units), self._copy(units + 1)
        if lengths.beyond is not None:
            for copy in (key, value):
                tail = copy[:, :, lengths.shortest : lengths.longest]
                tail.masked_fill_(lengths.beyond, 0)
        return key[:, :, : lengths.longest], value[:, :, : lengths.longest]

    def _copy(self, units: torch.Tensor) -> torch.Tensor:
        g = self.geometry
        requests, rows, heads = units.shape
        blocks = self._memory.index_select(0, units.transpose(1, 2).reshape(-1))
        return blocks.view(requests, heads, rows * g.block_tokens, g.head_dim)
