"""A model's weights in the arena all its hosts share: loaded once, sealed, then mapped read-only.

Bytes go from the shards straight into the arena where the dtypes agree.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from mux_core.llm import Dtype
from mux_runtime.engines.checkpoint_files import (
    CheckpointTensors,
    CorruptCheckpoint,
    TensorFile,
    read_tensors,
)
from mux_runtime.engines.host import GeometryMismatch, PoolHandle, WeightsHandle
from mux_runtime.engines.torch.layout import Layout, Weight, elements
from mux_runtime.kvpool.client import Arena, Role

DTYPES: Final[Mapping[str, torch.dtype]] = {
    Dtype.FLOAT32: torch.float32,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT16: torch.float16,
}


def share_weights(
    pool: PoolHandle, handle: WeightsHandle, layout: Layout, dtype: Dtype
) -> dict[str, torch.Tensor]:
    """Views of the model's weights by name in `layout`. The first host loads and seals them."""
    found = read_tensors(Path(handle.model_dir))
    arena = pool.attach(handle.arena, layout.nbytes)
    if arena.role is Role.LOADER:
        _load(arena, layout, found, dtype)
        pool.seal(handle.arena, found.digest)
        # Its mapping stays writable; only a second one is as read-only as everybody's.
        arena.close()
        arena = pool.attach(handle.arena, layout.nbytes)
    if arena.digest != found.digest:
        raise GeometryMismatch(f"{handle.model_dir}: its files changed since another host loaded "
                               f"weights {handle.arena!r}; stop all hosts of the model and start "
                               "them again")  # fmt: skip
    return {weight.name: _view(arena, weight, DTYPES[dtype]) for weight in layout.weights}


def on_device(weights: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The weights where they compute: themselves on the CPU, this host's own copy on a GPU."""
    return {name: weight.to(device) for name, weight in weights.items()}


def tensor_over(arena: Arena, dtype: torch.dtype, *, count: int = -1, offset: int = 0
) -> torch.Tensor:  # fmt: skip
    """A flat tensor over the arena's memory; no copy. It keeps the mapping alive."""
    with warnings.catch_warnings():
        # torch has no read-only tensors and says so; nothing here writes to weights.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(arena.buffer, dtype=dtype, count=count, offset=offset)


def _view(arena: Arena, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    flat = tensor_over(arena, dtype, count=weight.elements, offset=weight.offset)
    return flat.view(weight.shape)


def _load(arena: Arena, layout: Layout, found: CheckpointTensors, dtype: Dtype) -> None:
    with memoryview(arena.buffer) as memory:
        for weight in layout.weights:
            start = weight.offset
            for name, shape in weight.parts:
                tensor = _part(found, name, shape)
                nbytes = elements(shape) * dtype.itemsize
                with memory[start : start + nbytes] as target:
                    _read(tensor, name, target, dtype)
                start += nbytes


def _part(found: CheckpointTensors, name: str, shape: tuple[int, ...]) -> TensorFile:
    tensor = found.tensors.get(name)
    if tensor is None:
        raise CorruptCheckpoint(f"checkpoint: tensor {name} is missing; copy all weights again")
    if tensor.shape != shape:
        raise CorruptCheckpoint(f"{tensor.path}: tensor {name} has shape {list(tensor.shape)}, "
                                f"config.json makes it {list(shape)}")  # fmt: skip
    return tensor


def _read(tensor: TensorFile, name: str, target: memoryview, dtype: Dtype) -> None:
    """One tensor from its shard into `target`, converted if it is stored in another dtype."""
    straight = tensor.dtype == dtype
    raw = target if straight else memoryview(bytearray(tensor.nbytes))
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        if file.readinto(raw) != tensor.nbytes:
            raise CorruptCheckpoint(f"{tensor.path}: tensor {name} ends early; the file is "
                                    "truncated, copy it again")  # fmt: skip
    if not straight:
        stored = torch.frombuffer(raw, dtype=DTYPES[tensor.dtype])
        torch.frombuffer(target, dtype=DTYPES[dtype]).copy_(stored)
