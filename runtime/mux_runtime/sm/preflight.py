"""What must be true of a GPU before a unit may share it; each refusal names the fix."""

import os
import shutil
from collections.abc import Mapping, Sequence
from enum import StrEnum

from mux_core.errors import SpecError
from mux_core.units import format_bytes
from mux_runtime.nvml import GpuDevice
from mux_runtime.sm.mps import DEFAULT_PIPE, PROGRAM, foreign_daemon


class Unfit(StrEnum):
    """Why a GPU cannot be shared as it is."""

    NO_GPU = "NoGPU"
    MIG_ENABLED = "MIGEnabled"
    GPU_IN_USE = "GPUInUse"
    MPS_DAEMON_PRESENT = "MPSDaemonPresent"
    MPS_UNAVAILABLE = "MPSUnavailable"


class GpuUnfit(SpecError):
    """The unit cannot start on this machine as it is; `reason` says why."""

    def __init__(self, message: str, *, reason: Unfit) -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def may_pass(self) -> bool:
        """Whether others may end it, so that the same start may succeed later."""
        return self.reason in (Unfit.GPU_IN_USE, Unfit.MPS_DAEMON_PRESENT)


def choose_gpu(
    devices: Sequence[GpuDevice], *, gpus: int, environment: Mapping[str, str] = os.environ
) -> GpuDevice:
    """The one GPU of a unit, fit to be shared. Raises GpuUnfit."""
    visible = _visible(devices, environment.get("CUDA_VISIBLE_DEVICES"))
    if gpus != 1:
        raise GpuUnfit(f"unit: {gpus} GPUs; this runtime runs a unit on 1, split the pool's group",
                       reason=Unfit.NO_GPU)  # fmt: skip
    if not visible:
        raise GpuUnfit(f"unit: sees none of the machine's {len(devices)} GPUs (CUDA_VISIBLE_DEVICES"
                       f" is {environment.get('CUDA_VISIBLE_DEVICES')!r}); give it one",
                       reason=Unfit.NO_GPU)  # fmt: skip
    _check_gpu(visible[0])
    return visible[0]


def check_mps(environment: Mapping[str, str] = os.environ) -> None:
    """Whether a daemon of ours can be started. Raises GpuUnfit."""
    if shutil.which(PROGRAM) is None:
        raise GpuUnfit(f"MPS: {PROGRAM} is not on the PATH; install it with the driver, or set "
                       "NVIDIA_DRIVER_CAPABILITIES=compute,utility on the container",
                       reason=Unfit.MPS_UNAVAILABLE)  # fmt: skip
    pid = foreign_daemon(environment)
    if pid is not None:
        place = environment.get("CUDA_MPS_PIPE_DIRECTORY") or DEFAULT_PIPE
        raise GpuUnfit(f"MPS: process {pid} is a daemon that is not ours, at {place} or "
                       f"{DEFAULT_PIPE}; its clients would take SMs that no share counts: end it "
                       f"(echo quit | {PROGRAM}), or keep this node out of the pool",
                       reason=Unfit.MPS_DAEMON_PRESENT)  # fmt: skip


def _check_gpu(device: GpuDevice) -> None:
    subject = f"GPU {device.index} ({device.name}, {device.uuid})"
    if device.mig_enabled:
        raise GpuUnfit(f"{subject}: MIG is on, and MPS shares are of whole GPUs; turn it off "
                       f"(nvidia-smi -i {device.index} -mig 0), or keep this node out of the pool",
                       reason=Unfit.MIG_ENABLED)  # fmt: skip
    if device.processes:
        pid, used = max(device.processes.items(), key=lambda item: (item[1], item[0]))
        raise GpuUnfit(f"{subject}: {len(device.processes)} other processes use it, the largest is "
                       f"{pid} with {format_bytes(used)}; a unit owns its GPU alone: end them, or "
                       "give the unit another GPU", reason=Unfit.GPU_IN_USE)  # fmt: skip


def _visible(devices: Sequence[GpuDevice], named: str | None) -> list[GpuDevice]:
    """Those of `devices` that CUDA_VISIBLE_DEVICES names, in its order, up to an unknown one."""
    if named is None:
        return list(devices)
    found: list[GpuDevice] = []
    for name in (part.strip() for part in named.split(",")):
        match = next((device for device in devices if _is_named(device, name)), None)
        if match is None:
            break
        found.append(match)
    return found


def _is_named(device: GpuDevice, name: str) -> bool:
    return name == str(device.index) or (name.startswith("GPU-") and device.uuid.startswith(name))
