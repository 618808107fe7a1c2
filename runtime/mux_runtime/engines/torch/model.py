"""The forward pass of a dense decoder: Llama, Mistral, Qwen2 and Qwen3 differ in what they have."""

import math
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from mux_core.checkpoint import ModelConfig, Rope, RopeKind

Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Layer, query, key, value `[token, head, head_dim]` -> as query; stores K and V on the way."""


class DenseModel:
    """Stateless but for its weights; tokens of all requests of a step lie behind each other."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> None:
        self._config = config
        self._weights = weights
        self._device = weights["embed"].device
        frequencies = rope_frequencies(config.rope, config.geometry.head_dim)
        self._frequencies = frequencies.to(self._device)

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attention
    ) -> torch.Tensor:
        """Hidden states `[token, hidden]` before the last norm."""
        hidden = functional.embedding(tokens, self._weights["embed"])
        angles = positions.to(torch.float32).unsqueeze(1) * self._frequencies
        cos = angles.cos().to(hidden.dtype).unsqueeze(1)
        sin = angles.sin().to(hidden.dtype).unsqueeze(1)
        for layer in range(self._config.geometry.layers):
            hidden = hidden + self._attention(layer, hidden, cos, sin, attend)
            hidden = hidden + self._mlp(layer, hidden)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the next token, float32 `[token, vocab]`."""
        tied = self._config.geometry.tied_embeddings
        head = self._weights["embed" if tied else "head"]
        return functional.linear(self._norm(hidden, "norm"), head).float()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Pays for the first use of the kernels and for paging weights in; touches no KV."""

        def attend(
            _: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
        ) -> torch.Tensor:
            grouped = query.view(1, key.shape[1], -1, query.shape[2])
            columns = key.transpose(0, 1).unsqueeze(0), value.transpose(0, 1).unsqueeze(0)
            return functional.scaled_dot_product_attention(grouped, *columns)

        start = torch.zeros(1, dtype=torch.int64, device=self._device)
        self.logits(self.forward(start, start, attend)).argmax()

    def _attention(
        self, layer: int, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
        attend: Attention,
    ) -> torch.Tensor:  # fmt: skip
        g = self._config.geometry
        heads = self._linear(layer, "qkv", self._norm(hidden, f"{layer}.norm1"))
        query, key, value = torch.split(
            heads.view(len(hidden), -1, g.head_dim), [g.heads, g.kv_heads, g.kv_heads], dim=1
        )
        if g.qk_norm:
            query = self._norm(query, f"{layer}.q_norm")
            key = self._norm(key, f"{layer}.k_norm")
        out = attend(layer, rotate(query, cos, sin), rotate(key, cos, sin), value)
        return self._linear(layer, "out", out.reshape(len(hidden), -1))

    def _mlp(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        both = self._linear(layer, "gate_up", self._norm(hidden, f"{layer}.norm2"))
        gate, up = both.chunk(2, dim=1)
        return self._linear(layer, "down", functional.silu(gate) * up)

    def _linear(self, layer: int, name: str, x: torch.Tensor) -> torch.Tensor:
        bias = self._weights.get(f"{layer}.{name}_bias")
        return functional.linear(x, self._weights[f"{layer}.{name}"], bias)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Computed in float32, as the checkpoints' own code does."""
        weight = self._weights[name]
        normed = functional.rms_norm(x.float(), (x.shape[-1],), eps=self._config.norm_eps)
        return weight * normed.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns each pair (i, i + head_dim/2) of `[token, head, head_dim]` by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rope_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Radians per position of each pair."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.kind:
        case RopeKind.DEFAULT:
            return frequencies
        case RopeKind.LINEAR:
            return frequencies / rope.factor
        case RopeKind.LLAMA3:
            return _llama3(rope, frequencies)


def _llama3(rope: Rope, frequencies: torch.Tensor) -> torch.Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between blended.

    Source: the Llama 3.1 model card and transformers' `rope_type: llama3`.
    """
    turns = rope.original_len * frequencies / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = blend.clamp(0.0, 1.0)
    return frequencies * (kept + (1 - kept) / rope.factor)
