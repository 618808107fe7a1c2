"""NVML for tests: one fake GPU, with MIG on (FAKE_MIG) or in use by a process (FAKE_GPU_USER)."""

import os
from types import SimpleNamespace

NVML_DEVICE_MIG_ENABLE = 1


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


def nvmlInit() -> None: ...
def nvmlShutdown() -> None: ...


def nvmlDeviceGetCount() -> int:
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    return SimpleNamespace(total=80 << 30, used=0)


def nvmlDeviceGetUUID(handle: int) -> str:
    return "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"


def nvmlDeviceGetName(handle: int) -> str:
    return "Fake GPU"


def nvmlDeviceGetMigMode(handle: int) -> tuple[int, int]:
    on = int(bool(os.environ.get("FAKE_MIG")))
    return on, on


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[SimpleNamespace]:
    pid = os.environ.get("FAKE_GPU_USER")
    return [SimpleNamespace(pid=int(pid), usedGpuMemory=3 << 30)] if pid else []
