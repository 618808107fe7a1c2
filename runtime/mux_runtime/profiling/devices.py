"""What a profile can be made on: this machine's processor, or a GPU that is ours alone."""

import os
import platform
import shutil
from pathlib import Path
from typing import Final

from mux_core.errors import SpecError
from mux_runtime.nvml import GpuDevice, NvmlUnavailable, open_nvml

MPS_CONTROL: Final = "nvidia-cuda-mps-control"
_CPUINFO: Final = Path("/proc/cpuinfo")


class NoDevice(SpecError):
    """The device asked for is not here, or not as a profile needs it."""


def cpu_name(cores: int) -> str:
    """The processor and how many of its cores this process may use."""
    model = platform.machine()
    if _CPUINFO.exists():
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        model = next(named, model)
    return f"{model}, {cores} cores"


def cores() -> int:
    return len(os.sched_getaffinity(0))


def require_gpu() -> GpuDevice:
    """The one GPU to profile. NoDevice says what is in the way and what to do."""
    try:
        with open_nvml() as nvml:
            found = nvml.devices()
    except NvmlUnavailable as error:
        raise NoDevice(f"--device cuda: no GPU can be asked ({error}); use --device cpu, or a "
                       "machine with an NVIDIA driver") from error  # fmt: skip
    if not found:
        raise NoDevice("--device cuda: the driver lists no GPU; use --device cpu")
    return checked(found[0], mps_control=shutil.which(MPS_CONTROL))


def checked(gpu: GpuDevice, *, mps_control: str | None) -> GpuDevice:
    """The same GPU if steps timed on it mean something."""
    subject = f"--device cuda: GPU {gpu.index} ({gpu.name})"
    if gpu.mig_enabled:
        raise NoDevice(f"{subject} has MIG on, shares of it are not shares of the GPU; turn MIG "
                       "off (nvidia-smi -mig 0)")  # fmt: skip
    if gpu.processes:
        users = ", ".join(f"pid {pid}" for pid in sorted(gpu.processes))
        raise NoDevice(f"{subject} is in use by {users}; their steps would be measured with ours: "
                       "end them or choose another GPU with CUDA_VISIBLE_DEVICES")  # fmt: skip
    if mps_control is None:
        raise NoDevice(f"{subject}: {MPS_CONTROL} is not on PATH, no SM share can be set; install "
                       "the driver's compute utilities")  # fmt: skip
    return gpu
