"""A checkpoint of random weights for a config.json: a step takes as long with any weights."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from mux_core.llm import Dtype
from mux_runtime.engines.checkpoint_files import WHOLE, read_json, read_model_config
from mux_runtime.engines.torch.layout import elements, layout

SPREAD: Final = 0.02
_NAMES: Final = {Dtype.FLOAT32: "F32", Dtype.FLOAT16: "F16", Dtype.BFLOAT16: "BF16"}
_CHUNK: Final = 1 << 22


def write_checkpoint(config: Path, folder: Path) -> Path:
    """Makes `folder` with this config.json and weights of its shapes; kept if it is there."""
    document = read_json(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    model = read_model_config(folder)
    dtype = model.geometry.dtype
    parts = [part for w in layout(model, dtype.itemsize).weights for part in w.parts]
    header: dict[str, Any] = {}
    end = 0
    for name, shape in parts:
        begin, end = end, end + elements(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    whole = folder / WHOLE
    if whole.exists() and whole.stat().st_size == 8 + len(text) + end:
        return folder
    draw = np.random.default_rng(0)
    with whole.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for left in range(end // dtype.itemsize, 0, -_CHUNK):
            file.write(_numbers(draw, min(left, _CHUNK), dtype))
    return folder


def _numbers(draw: np.random.Generator, count: int, dtype: Dtype) -> bytes:
    values = draw.standard_normal(count, dtype=np.float32) * np.float32(SPREAD)
    match dtype:
        case Dtype.FLOAT32:
            return values.tobytes()
        case Dtype.FLOAT16:
            return values.astype(np.float16).tobytes()
        case Dtype.BFLOAT16:
            # The upper half of a float32, cut: the exact values do not matter.
            return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
