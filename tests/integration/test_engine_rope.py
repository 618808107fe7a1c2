"""Rotary frequencies against transformers."""

import json
from pathlib import Path

import pytest
import torch

from mux_core.checkpoint import read_config
from mux_runtime.engines.torch.model import rope_frequencies

pytestmark = pytest.mark.engine

LLAMA3 = {"rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 256}  # fmt: skip


@pytest.mark.parametrize(
    "parameters",
    [{"rope_type": "default", "rope_theta": 10000.0},
     {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, LLAMA3],
)  # fmt: skip
def test_frequencies_equal_transformers(parameters: dict[str, object], tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, head_dim=64, num_hidden_layers=1,
        rope_parameters=parameters, architectures=["LlamaForCausalLM"],
        max_position_embeddings=2048,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    ours = rope_frequencies(read_config(written).rope, 64)
    torch.testing.assert_close(ours, LlamaRotaryEmbedding(config).inv_freq)
