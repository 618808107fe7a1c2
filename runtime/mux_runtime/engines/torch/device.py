"""Where an engine computes, and where its KV lies: the CPU with the unit's pool, or one GPU.

GPU memory is not shared between processes yet. A host on a GPU therefore holds KV of its own, as
large as the pool's arena, and must be told that no other host reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from mux_core.engine import KVGeometry
from mux_core.errors import CapacityError
from mux_core.units import format_bytes
from mux_runtime.engines.host import PoolHandle, UnsupportedVersion
from mux_runtime.engines.torch.weights import DTYPES, tensor_over
from mux_runtime.kvpool.allocator import EXHAUSTED
from mux_runtime.sm.driver import see_gpu


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """One device of torch's."""

    torch: torch.device

    @property
    def is_gpu(self) -> bool:
        return self.torch.type == "cuda"

    def wait_idle(self) -> None:
        """Returns when everything given to the device is done."""
        if self.is_gpu:
            torch.cuda.synchronize(self.torch)

    def peak_bytes(self) -> int:
        """The most GPU memory that torch held; its context is not counted."""
        return torch.cuda.max_memory_reserved(self.torch) if self.is_gpu else 0

    def sms(self) -> int:
        """Multiprocessors that this process sees, its share under MPS; 0 without a GPU."""
        return see_gpu().sms if self.is_gpu else 0


CPU: Final = EngineDevice(torch.device("cpu"))


def open_device(name: str, *, private_kv: bool) -> EngineDevice:
    """The device `cpu` or `cuda`. Raises UnsupportedVersion for what cannot be had."""
    if name == "cpu":
        return CPU
    if name != "cuda":
        raise UnsupportedVersion(f"torch engine: device {name!r}; this version has cpu and cuda")
    if not private_kv:
        raise UnsupportedVersion(
            "torch engine: device cuda; this version cannot share a KV pool in GPU memory between "
            "processes, so prefill and decode hosts of a unit cannot run there; use device CPU, or "
            "measure one host alone (--private-kv)")  # fmt: skip
    if not torch.cuda.is_available():
        raise UnsupportedVersion(f"torch engine: device cuda; torch {torch.__version__} sees no "
                                 "GPU here; use device cpu, or look at nvidia-smi and "
                                 "CUDA_VISIBLE_DEVICES")  # fmt: skip
    return EngineDevice(torch.device("cuda", 0))


KvMemory = Callable[[PoolHandle, EngineDevice, KVGeometry], torch.Tensor]
"""Where a host's KV lies: the whole arena, flat, in the geometry's dtype, on the device."""


def pool_memory(pool: PoolHandle, device: EngineDevice, geometry: KVGeometry) -> torch.Tensor:
    """The unit's pool, shared with all its hosts."""
    return tensor_over(pool.map_kv(), DTYPES[geometry.dtype])


def private_memory(pool: PoolHandle, device: EngineDevice, geometry: KVGeometry) -> torch.Tensor:
    """As much as the pool has, of this host alone. Raises CapacityError."""
    nbytes = pool.map_kv().nbytes
    try:
        return torch.empty(nbytes // geometry.itemsize, dtype=DTYPES[geometry.dtype],
                           device=device.torch)  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise CapacityError(f"torch engine: no {format_bytes(nbytes)} of GPU memory for KV beside "
                            f"the weights ({error}); make the pool smaller",
                            reason=EXHAUSTED) from error  # fmt: skip
