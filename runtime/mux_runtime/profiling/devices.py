"""What a profile can be made on: this machine's processor, or a GPU that is ours alone."""

import os
import platform
from pathlib import Path
from typing import Final

from mux_core.errors import SpecError
from mux_runtime.nvml import GpuDevice, NvmlUnavailable, open_nvml
from mux_runtime.sm.preflight import check_mps, choose_gpu

_CPUINFO: Final = Path("/proc/cpuinfo")


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


def load_beside() -> float:
    """Processes that wanted a core in the last minute, on average."""
    return os.getloadavg()[0]


def require_gpu() -> GpuDevice:
    """The one GPU to profile, fit to be shared. SpecError says what is in the way and the fix."""
    try:
        with open_nvml() as nvml:
            found = nvml.devices()
    except NvmlUnavailable as error:
        raise SpecError(f"--device cuda: no GPU can be asked ({error}); use --device cpu, or a "
                        "machine with an NVIDIA driver") from error  # fmt: skip
    gpu = choose_gpu(found, gpus=1)
    check_mps()
    return gpu
