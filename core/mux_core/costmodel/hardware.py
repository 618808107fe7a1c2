"""GPU data sheets: what the analytic cost model knows of a GPU type, each figure with its source.

Peak dense 16-bit tensor throughput, memory bandwidth and the GPU-to-GPU bandwidth of one direction
come from the vendors' public data sheets; the efficiencies are ours and are fitted against the
shipped A100 tables only (`benchmarks/planner/cost_model_error.py` prints what they miss by).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from mux_core.errors import SpecError
from mux_core.units import GIB, Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One GPU type. `flops` in 1/s (dense, 16 bit), `bandwidth` and `link` in bytes/s."""

    name: str
    memory: Bytes
    flops: float
    bandwidth: float
    link: float
    sms: int


def _gpu(name: str, gib: int, tflops: float, gb_s: float, link_gb_s: float, sms: int) -> GpuType:
    return GpuType(
        name=name,
        memory=Bytes(gib * GIB),
        flops=tflops * 1e12,
        bandwidth=gb_s * 1e9,
        link=link_gb_s * 1e9,
        sms=sms,
    )


GPU_TYPES: Mapping[str, GpuType] = MappingProxyType({
    gpu.name: gpu
    for gpu in (
        # NVIDIA A100 data sheet (SXM4): 312 TFLOPS, 1,555 and 2,039 GB/s, NVLink 600 GB/s.
        _gpu("a100-40gb", 40, 312, 1555, 300, 108),
        _gpu("a100-80gb", 80, 312, 2039, 300, 108),
        # NVIDIA H100 and H200 data sheets (SXM5): 989 TFLOPS, 3.35 and 4.8 TB/s, NVLink 900 GB/s.
        _gpu("h100-80gb", 80, 989, 3350, 450, 132),
        _gpu("h200-141gb", 141, 989, 4800, 450, 132),
        # NVIDIA L40S data sheet: 362 TFLOPS, 864 GB/s, PCIe 4.0 x16 (64 GB/s both ways).
        _gpu("l40s-48gb", 48, 362, 864, 32, 142),
        # NVIDIA DGX B200 data sheet, per GPU: 180 GB, 2.25 PFLOPS, 8 TB/s, NVLink 1.8 TB/s.
        _gpu("b200-180gb", 180, 2250, 8000, 900, 148),
        # One slot of a CPU node: order of magnitude of 4 server cores; for demos, not for capacity.
        _gpu("cpu", 4, 0.2, 20, 5, 4),
    )
})  # fmt: skip


@cache
def gpu_type(name: str) -> GpuType:
    """The data sheet of a GPU type or product label (`h100`, `NVIDIA-A100-SXM4-40GB`).

    Where a label names no memory size, the largest of its family. Raises SpecError for a name
    without an entry.
    """
    label = name.lower()
    family = [gpu for gpu in GPU_TYPES.values() if gpu.name.partition("-")[0] in label]
    exact = [gpu for gpu in family if gpu.name.rpartition("-")[2] in label]
    found = exact or sorted(family, key=lambda gpu: gpu.memory)
    if not found:
        raise SpecError(f"GPU type {name}: no data sheet; one of {', '.join(GPU_TYPES)}")
    return found[-1]
