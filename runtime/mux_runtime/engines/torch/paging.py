"""The shared KV arena as a tensor: where a token's K and V of a layer and head lie.

The arena is seen as `[units, block_tokens, head_dim]`. K of head `h` lies in unit
`run + 2h`, V in the next (`gpu.md`'s view). A *table* holds the K units of rows:
`[rows, layers, kv_heads]`; an engine makes it once per row it takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mux_core.engine import KVGeometry, Row
from mux_runtime.engines.host import GeometryMismatch
from mux_runtime.engines.torch.weights import DTYPES, tensor_over
from mux_runtime.kvpool.client import Arena


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Where the tokens of one step go: K unit by `[token, layer, head]`, offset by `[token, 1]`."""

    units: torch.Tensor
    offsets: torch.Tensor


class PagedKv:
    """Reads and writes the KV of one model in the arena. Takes and frees no rows."""

    def __init__(self, arena: Arena, geometry: KVGeometry, unit_bytes: int) -> None:
        g = geometry
        if g.run_units % 2 or 2 * g.kv_heads % g.run_units:
            raise GeometryMismatch(f"KV geometry: runs of {g.run_units} units for {g.kv_heads} KV "
                                   "heads; a run holds whole pairs of K and V")  # fmt: skip
        self.geometry = geometry
        self.units = arena.nbytes // unit_bytes
        flat = tensor_over(arena, DTYPES[g.dtype])
        shape = (self.units, g.block_tokens, g.head_dim)
        self._memory = flat.as_strided(shape, (unit_bytes // g.itemsize, g.head_dim, 1))
        pairs = torch.arange(g.layers * g.kv_heads) * 2
        self._run, self._inside = pairs // g.run_units, pairs % g.run_units

    def table(self, rows: Sequence[Row]) -> torch.Tensor:
        """K units of `rows`: `[rows, layers, kv_heads]`."""
        g = self.geometry
        runs = torch.tensor(rows, dtype=torch.int64).view(len(rows), g.row_runs)
        return (runs[:, self._run] + self._inside).view(len(rows), g.layers, g.kv_heads)

    def slots(self, table: torch.Tensor, start: int, count: int) -> Slots:
        """Where tokens `start` to `start + count - 1` of the request with `table` go."""
        positions = torch.arange(start, start + count)
        block = self.geometry.block_tokens
        return Slots(units=table[positions // block], offsets=(positions % block).unsqueeze(1))

    def write(self, layer: int, slots: Slots, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores K and V `[token, head, head_dim]` of one layer."""
        units = slots.units[:, layer]
        self._memory[units, slots.offsets] = key
        self._memory[units + 1, slots.offsets] = value

    def gather(
        self, layer: int, tables: torch.Tensor, lengths: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies K and V of several requests: `[request, head, longest, head_dim]` each.

        `tables` is `[request, rows, layers, heads]`. What lies beyond a request's length is zeros:
        free memory may hold anything, and not even a weight of zero undoes a NaN.
        """
        units = tables[:, :, layer]
        key, value = self._copy(units), self._copy(units + 1)
        longest = max(lengths)
        for index, length in enumerate(lengths):
            if length < longest:
                key[index, :, length:] = 0
                value[index, :, length:] = 0
        return key[:, :, :longest], value[:, :, :longest]

    def _copy(self, units: torch.Tensor) -> torch.Tensor:
        g = self.geometry
        requests, rows, heads = units.shape
        blocks = self._memory.index_select(0, units.transpose(1, 2).reshape(-1))
        return blocks.view(requests, heads, rows * g.block_tokens, g.head_dim)
