"""Checkpoints of random weights in the shapes of published models, for speed and not for sense.

Written fast: one block of random numbers over and over, which costs a GPU what any numbers cost.
"""

import json
from pathlib import Path
from typing import Any

import record  # noqa: F401 (finds our sources)

from mux_runtime.engines.checkpoint_files import read_model_config
from mux_runtime.engines.torch.layout import elements, layout

_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128,
    "hidden_act": "silu", "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "vocab_size": 151936, "dtype": "bfloat16", "torch_dtype": "bfloat16",
    "attention_bias": False, "eos_token_id": 151645, "bos_token_id": 151643,
}  # fmt: skip
GEOMETRIES: dict[str, dict[str, Any]] = {
    "1.7b": {**_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
             "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "4b": {**_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
           "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "8b": {**_QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
           "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
    "tiny": {**_QWEN3, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
             "vocab_size": 256, "eos_token_id": 2, "bos_token_id": 1,
             "max_position_embeddings": 2048, "tie_word_embeddings": True, "dtype": "float32",
             "torch_dtype": "float32"},
}  # fmt: skip
_NAMES = {"float32": "F32", "bfloat16": "BF16"}


def write_model(name: str, folder: Path, seed: int = 0) -> Path:
    """The checkpoint of a geometry below `folder`."""
    import torch

    made = folder / name
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps(GEOMETRIES[name]))
    model = read_model_config(made)
    dtype = model.geometry.dtype
    header: dict[str, Any] = {}
    end = 0
    for part, shape in (p for w in layout(model, dtype.itemsize).weights for p in w.parts):
        begin, end = end, end + elements(shape) * dtype.itemsize
        header[part] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(1 << 24, generator=generator) * 0.02).to(getattr(torch, dtype.value))
    data = memoryview(block.view(torch.uint8).numpy())
    with (made / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, end, len(data)):
            file.write(data[: end - begin])
    return made
