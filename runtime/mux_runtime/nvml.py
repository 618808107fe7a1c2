"""The one door to NVML: which GPUs this process sees, their memory, MIG mode and processes.

Where the library or the driver is absent, `open_nvml` raises NvmlUnavailable with the reason, and
whoever can do without a GPU goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType

from mux_core.errors import PeerError
from mux_core.units import Bytes


class NvmlReason(StrEnum):
    """Why there is no NVML."""

    NOT_INSTALLED = "NvmlNotInstalled"
    NO_DRIVER = "NoDriver"
    FAILED = "NvmlFailed"


class NvmlUnavailable(PeerError):
    """NVML cannot be asked; `reason` says why."""

    def __init__(self, message: str, *, reason: NvmlReason) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDevice:
    """One GPU as the driver sees it. `processes`: bytes in use by process id."""

    index: int
    uuid: str
    name: str
    memory: Bytes
    memory_used: Bytes
    mig_enabled: bool
    processes: dict[int, int]


class Nvml:
    """An open NVML session; valid inside `open_nvml`."""

    def __init__(self, library: ModuleType) -> None:
        self._nvml = library

    def devices(self) -> tuple[GpuDevice, ...]:
        """All GPUs by index. Raises NvmlUnavailable when one cannot be read."""
        nvml = self._nvml
        try:
            return tuple(self._device(index) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError as error:
            raise _failed(error) from error

    def _device(self, index: int) -> GpuDevice:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return GpuDevice(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=_text(nvml.nvmlDeviceGetName(handle)),
            memory=Bytes(int(memory.total)),
            memory_used=Bytes(int(memory.used)),
            mig_enabled=self._mig(handle),
            processes={p.pid: int(p.usedGpuMemory or 0)
                       for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle)},
        )  # fmt: skip

    def _mig(self, handle: object) -> bool:
        nvml = self._nvml
        try:
            current, _ = nvml.nvmlDeviceGetMigMode(handle)
        except nvml.NVMLError_NotSupported:
            return False
        return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


@contextmanager
def open_nvml() -> Iterator[Nvml]:
    """Raises NvmlUnavailable where there is no NVML to ask."""
    try:
        import pynvml
    except ImportError as error:
        raise NvmlUnavailable("NVML: the package nvidia-ml-py is not installed",
                              reason=NvmlReason.NOT_INSTALLED) from error  # fmt: skip
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound as error:
        raise NvmlUnavailable("NVML: libnvidia-ml.so is not on this machine; there is no driver",
                              reason=NvmlReason.NO_DRIVER) from error  # fmt: skip
    except pynvml.NVMLError as error:
        raise _failed(error) from error
    try:
        yield Nvml(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _failed(error: Exception) -> NvmlUnavailable:
    return NvmlUnavailable(f"NVML: {error}", reason=NvmlReason.FAILED)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
