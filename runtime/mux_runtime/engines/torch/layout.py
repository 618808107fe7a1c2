"""Where each weight of a model lies in its arena: the same for every host and every release.

Matrices that are used together are stored as one (Q, K, V; gate and up), so that a layer needs
four products instead of seven. Knows names and shapes, not torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mux_core.checkpoint import ModelConfig

_ALIGN: Final = 64
"""One cache line, and what vector loads like best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor of the arena: the checkpoint's `parts` below each other, at byte `offset`."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    offset: int

    @property
    def elements(self) -> int:
        return elements(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All weights of a model, by offset, and how many bytes they take."""

    weights: tuple[Weight, ...]
    nbytes: int


def elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def layout(config: ModelConfig, itemsize: int) -> Layout:
    """The arena of a model whose elements take `itemsize` bytes."""
    placed: list[Weight] = []
    offset = 0
    for name, parts in _tensors(config):
        rows = sum(shape[0] for _, shape in parts)
        shape = (rows, *parts[0][1][1:])
        placed.append(Weight(name=name, shape=shape, parts=parts, offset=offset))
        offset += -(-elements(shape) * itemsize // _ALIGN) * _ALIGN
    return Layout(weights=tuple(placed), nbytes=offset)


_Part = tuple[str, tuple[int, ...]]


def _tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[_Part, ...]]]:
    """Name in the arena, then names and shapes in the checkpoint."""
    g = config.geometry
    yield "embed", (("model.embed_tokens.weight", (g.vocab, g.hidden)),)
    for layer in range(g.layers):
        for name, parts in _layer(config):
            named = tuple((f"model.layers.{layer}.{part}", shape) for part, shape in parts)
            yield f"{layer}.{name}", named
    yield "norm", (("model.norm.weight", (g.hidden,)),)
    if not g.tied_embeddings:
        yield "head", (("lm_head.weight", (g.vocab, g.hidden)),)


def _layer(config: ModelConfig) -> Iterator[tuple[str, tuple[_Part, ...]]]:
    g = config.geometry
    q, kv = g.heads * g.head_dim, g.kv_heads * g.head_dim
    widths = (("q", q), ("k", kv), ("v", kv))
    yield "norm1", (("input_layernorm.weight", (g.hidden,)),)
    yield "qkv", tuple((f"self_attn.{x}_proj.weight", (n, g.hidden)) for x, n in widths)
    if g.qkv_bias:
        yield "qkv_bias", tuple((f"self_attn.{x}_proj.bias", (n,)) for x, n in widths)
    if g.qk_norm:
        yield "q_norm", (("self_attn.q_norm.weight", (g.head_dim,)),)
        yield "k_norm", (("self_attn.k_norm.weight", (g.head_dim,)),)
    yield "out", (("self_attn.o_proj.weight", (g.hidden, q)),)
    if config.output_bias:
        yield "out_bias", (("self_attn.o_proj.bias", (g.hidden,)),)
    yield "norm2", (("post_attention_layernorm.weight", (g.hidden,)),)
    up = (g.intermediate, g.hidden)
    yield "gate_up", (("mlp.gate_proj.weight", up), ("mlp.up_proj.weight", up))
    if config.mlp_bias:
        yield "gate_up_bias", (("mlp.gate_proj.bias", up[:1]), ("mlp.up_proj.bias", up[:1]))
    yield "down", (("mlp.down_proj.weight", (g.hidden, g.intermediate)),)
    if config.mlp_bias:
        yield "down_bias", (("mlp.down_proj.bias", (g.hidden,)),)
