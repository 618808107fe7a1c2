"""Attention over gathered rows with torch's own kernels: right everywhere, fastest nowhere.

A CUDA back-end would read the runs in place; it takes this module's place behind `StepAttention`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from mux_runtime.engines.torch.paging import Lengths, PagedKv, lengths_of

PADDING: Final = 512 << 10
"""Bytes of K and V by which a layer's decodes may be padded to be attended to in one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One request's part of a step: `count` tokens from position `start`; KV by `table`."""

    start: int
    count: int
    table: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decodes:
    """Requests that run one token each, attended to together: tokens `first` to `end` - 1."""

    tables: torch.Tensor
    first: int
    end: int
    lengths: Lengths
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prefill:
    """One request that runs several tokens, `first` to `first + count - 1` of the step."""

    tables: torch.Tensor
    first: int
    count: int
    lengths: Lengths
    mask: torch.Tensor | None


class StepAttention:
    """Stores the step's K and V and attends, layer by layer. Made for one step."""

    def __init__(self, kv: PagedKv, spans: Sequence[Span]) -> None:
        """`spans` lie in the order of the step's tokens: those of one token first, shortest KV
        before longer."""
        self._kv = kv
        # Made here, sent once: on a GPU every small tensor costs a launch.
        positions = torch.cat([torch.arange(s.start, s.start + s.count) for s in spans])
        owners = torch.cat([torch.full((s.count,), at) for at, s in enumerate(spans)])
        self.positions, owners = torch.stack([positions, owners]).to(kv.device)
        # Short requests are padded with unit 0, whose copy `gather` clears.
        tables = pad_sequence([span.table for span in spans], batch_first=True)
        self._slots = kv.slots(tables, owners, self.positions)
        singles = sum(span.count == 1 for span in spans)
        lengths = [span.start + 1 for span in spans[:singles]]
        self._decodes = [_decodes(kv, tables, lengths, first, end)
                         for first, end in groups(lengths, _most_padding(kv))]  # fmt: skip
        self._prefills = list(_prefills(kv, spans, after=singles))

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """`query` is `[token, head, head_dim]`, `key` and `value` per KV head; like `query`."""
        self._kv.write(layer, self._slots, key, value)
        tokens, heads, head_dim = query.shape
        grouped = query.view(tokens, key.shape[1], heads // key.shape[1], head_dim)
        parts = [self._decode(layer, part, grouped) for part in self._decodes]
        parts += [self._prefill(layer, part, grouped) for part in self._prefills]
        return torch.cat(parts).view(tokens, heads, head_dim)

    def _decode(self, layer: int, part: _Decodes, query: torch.Tensor) -> torch.Tensor:
        key, value = self._kv.gather(layer, part.tables, part.lengths)
        return functional.scaled_dot_product_attention(query[part.first : part.end], key, value,
                                                       attn_mask=part.mask)  # fmt: skip

    def _prefill(self, layer: int, part: _Prefill, query: torch.Tensor) -> torch.Tensor:
        """The query heads of a KV head form its batch; K and V are not repeated."""
        own = query[part.first : part.first + part.count].permute(1, 2, 0, 3)
        key, value = self._kv.gather(layer, part.tables, part.lengths)
        shape = (own.shape[0], own.shape[1], part.lengths.longest, own.shape[3])
        out = functional.scaled_dot_product_attention(
            own, key[0].unsqueeze(1).expand(shape), value[0].unsqueeze(1).expand(shape),
            attn_mask=part.mask, is_causal=part.mask is None,
        )  # fmt: skip
        return out.permute(2, 0, 1, 3)


def groups(lengths: Sequence[int], most_padding: int) -> Iterator[tuple[int, int]]:
    """(first, end) of runs of ascending lengths, each padded to its longest by so much at most."""
    first = padding = 0
    for at in range(1, len(lengths)):
        padding += (at - first) * (lengths[at] - lengths[at - 1])
        if padding > most_padding:
            yield first, at
            first, padding = at, 0
    if lengths:
        yield first, len(lengths)


def _most_padding(kv: PagedKv) -> int:
    """Tokens whose K and V of a layer cost about as much as one more call for a group does."""
    shape = kv.geometry
    return PADDING // (2 * shape.kv_heads * shape.head_dim * shape.itemsize)


def _decodes(
    kv: PagedKv, tables: torch.Tensor, tokens: Sequence[int], first: int, end: int
) -> _Decodes:
    lengths = lengths_of(tokens[first:end], kv.device)
    mask = None
    if lengths.beyond is not None:
        ends = torch.tensor(tokens[first:end], device=kv.device).view(-1, 1, 1, 1)
        mask = torch.arange(lengths.longest, device=kv.device) < ends
    rows = kv.geometry.rows_for(lengths.longest)
    return _Decodes(tables=tables[first:end, :rows], first=first, end=end, lengths=lengths,
                    mask=mask)  # fmt: skip


def _prefills(kv: PagedKv, spans: Sequence[Span], *, after: int) -> Iterator[_Prefill]:
    first = after
    for span in spans[after:]:
        length = span.start + span.count
        mask = None
        if span.start:
            positions = torch.arange(span.start, length, device=kv.device).unsqueeze(1)
            mask = torch.arange(length, device=kv.device) <= positions
        tables = span.table[: kv.geometry.rows_for(length)].unsqueeze(0)
        yield _Prefill(tables=tables, first=first, count=span.count, mask=mask,
                       lengths=lengths_of([length], kv.device))  # fmt: skip
        first += span.count
