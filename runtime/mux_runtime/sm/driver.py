"""The CUDA driver, asked what this process sees of its first GPU.

`python -m mux_runtime.sm.driver` prints it as JSON. Under MPS the number of multiprocessors is
that of the client's share, so the whole GPU is counted by a process outside of MPS.
"""

import ctypes
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mux_core.errors import PeerError

LIBRARY: Final = "libcuda.so.1"
_MULTIPROCESSOR_COUNT: Final = 16
"""CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT of cuda.h."""
_ANSWERS_WITHIN_S: Final = 60.0
"""The first CUDA call of a machine may have to load the driver's modules."""


class DriverUnavailable(PeerError):
    """The CUDA driver is not there, or failed a call; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenGpu:
    """The first GPU as one process sees it; `sms` are those it may use."""

    uuid: str
    name: str
    sms: int


def see_gpu() -> SeenGpu:
    """Asks the driver in this process. Makes no context. Raises DriverUnavailable."""
    cuda = _load()
    device = ctypes.c_int()
    count = ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    identity = (ctypes.c_ubyte * 16)()
    for call, arguments in (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDeviceGetAttribute", (ctypes.byref(count), _MULTIPROCESSOR_COUNT, device)),
        ("cuDeviceGetName", (name, len(name), device)),
        ("cuDeviceGetUuid_v2", (identity, device)),
    ):
        _check(call, getattr(cuda, call)(*arguments))
    return SeenGpu(uuid=f"GPU-{uuid.UUID(bytes=bytes(identity))}", name=name.value.decode(),
                   sms=count.value)  # fmt: skip


def see_gpu_outside_mps(empty: Path) -> SeenGpu:
    """Asks in a process of its own that no MPS daemon serves. Raises DriverUnavailable.

    `empty` is a directory in which no daemon ever listens: a client that finds none goes on alone.
    """
    environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(empty)}
    environment.pop("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", None)
    line = [sys.executable, "-m", "mux_runtime.sm.driver"]
    try:
        asked = subprocess.run(line, env=environment, capture_output=True, text=True,
                               timeout=_ANSWERS_WITHIN_S, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DriverUnavailable(f"CUDA driver: no answer after {_ANSWERS_WITHIN_S:.0f} s; look "
                                "for a hung GPU with nvidia-smi") from error  # fmt: skip
    if asked.returncode:
        raise DriverUnavailable(asked.stderr.strip() or f"CUDA driver: code {asked.returncode}")
    return SeenGpu(**json.loads(asked.stdout))


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DriverUnavailable(f"CUDA driver: {LIBRARY} is not on this machine ({error}); use "
                                "device CPU, or a machine with a GPU") from error  # fmt: skip


def _check(call: str, code: int) -> None:
    if code:
        raise DriverUnavailable(f"CUDA driver: {call} failed with {code} (cuda.h names it); look "
                                "at nvidia-smi and CUDA_VISIBLE_DEVICES")  # fmt: skip


def main(argv: Sequence[str]) -> int:
    try:
        print(json.dumps(asdict(see_gpu())))
    except DriverUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
