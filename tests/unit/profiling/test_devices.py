"""What a GPU must be like to be profiled; the driver's answers are values."""

import pytest

from mux_core.units import GIB, Bytes
from mux_runtime.nvml import GpuDevice
from mux_runtime.profiling.devices import NoDevice, checked


def gpu(**changes):
    return GpuDevice(**{"index": 0, "uuid": "GPU-1", "name": "NVIDIA H200",
                        "memory": Bytes(141 * GIB), "memory_used": Bytes(0), "mig_enabled": False,
                        "processes": {}} | changes)  # fmt: skip


def test_a_free_gpu_is_taken():
    assert checked(gpu(), mps_control="/usr/bin/nvidia-cuda-mps-control") == gpu()


@pytest.mark.parametrize(
    ("found", "control", "words"),
    [
        (gpu(mig_enabled=True), "/x", "has MIG on.*nvidia-smi -mig 0"),
        (gpu(processes={77: 1 << 30}), "/x", "in use by pid 77"),
        (gpu(), None, "nvidia-cuda-mps-control is not on PATH"),
    ],
    ids=["mig", "in-use", "no-mps"],
)
def test_a_gpu_that_would_be_measured_wrong_is_refused_with_the_fix(found, control, words):
    with pytest.raises(NoDevice, match=words):
        checked(found, mps_control=control)
