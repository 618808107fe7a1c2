"""A GPU that cannot be shared is refused with what to do about it."""

import os
from pathlib import Path

import pytest

from mux_runtime.nvml import GpuDevice
from mux_runtime.sm import mps
from mux_runtime.sm.preflight import GpuUnfit, Unfit, check_mps, choose_gpu
from sm_builders import gpu

OTHER = "GPU-ffffffff-0405-0607-0809-0a0b0c0d0e0f"


@pytest.mark.parametrize(
    ("devices", "visible", "index"),
    [
        pytest.param([gpu()], None, 0, id="the only one"),
        pytest.param([gpu(), gpu(index=1, uuid=OTHER)], "1", 1, id="by index"),
        pytest.param([gpu(), gpu(index=1, uuid=OTHER)], OTHER, 1, id="by uuid"),
        pytest.param([gpu(), gpu(index=1, uuid=OTHER)], "GPU-ffff,0", 1, id="by its beginning"),
        pytest.param([gpu(mig_enabled=True), gpu(index=1, uuid=OTHER)], "1", 1,
                     id="another one has MIG"),
    ],
)  # fmt: skip
def test_the_first_visible_gpu_is_taken(
    devices: list[GpuDevice], visible: str | None, index: int
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert choose_gpu(devices, gpus=1, environment=environment).index == index


@pytest.mark.parametrize(
    ("devices", "gpus", "visible", "reason", "message"),
    [
        pytest.param([], 1, None, Unfit.NO_GPU, "none of the machine's 0 GPUs", id="none"),
        pytest.param([gpu()], 1, "", Unfit.NO_GPU, "CUDA_VISIBLE_DEVICES is ''", id="hidden"),
        pytest.param([gpu()], 1, "3", Unfit.NO_GPU, "CUDA_VISIBLE_DEVICES is '3'", id="no such"),
        pytest.param([gpu()], 2, None, Unfit.NO_GPU, "2 GPUs; this runtime", id="two wanted"),
        pytest.param([gpu(mig_enabled=True)], 1, None, Unfit.MIG_ENABLED, "-i 0 -mig 0", id="MIG"),
        pytest.param([gpu(processes={7: 1 << 30, 9: 3 << 30})], 1, None, Unfit.GPU_IN_USE,
                     "2 other processes use it, the largest is 9 with 3.0 GiB", id="in use"),
    ],
)  # fmt: skip
def test_an_unfit_gpu_is_refused(
    devices: list[GpuDevice], gpus: int, visible: str | None, reason: Unfit, message: str
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(GpuUnfit) as refused:
        choose_gpu(devices, gpus=gpus, environment=environment)
    assert refused.value.reason is reason
    assert refused.value.may_pass is (reason is Unfit.GPU_IN_USE)
    assert message in str(refused.value)


def test_no_control_program_names_package_and_capability(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GpuUnfit, match="NVIDIA_DRIVER_CAPABILITIES=compute,utility") as refused:
        check_mps({})
    assert refused.value.reason is Unfit.MPS_UNAVAILABLE


@pytest.fixture
def with_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / mps.PROGRAM).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mps, "DEFAULT_PIPE", tmp_path / "nobody")


@pytest.mark.usefixtures("with_program")
def test_a_daemon_of_somebody_else_is_refused_and_not_spoken_to(tmp_path: Path) -> None:
    (tmp_path / mps.PID_FILE).write_text(str(os.getpid()))
    with pytest.raises(GpuUnfit, match=f"process {os.getpid()} is a daemon") as refused:
        check_mps({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)})
    assert refused.value.reason is Unfit.MPS_DAEMON_PRESENT


@pytest.mark.usefixtures("with_program")
@pytest.mark.parametrize("content", ["4194305", "", "nonsense"])
def test_what_a_dead_daemon_left_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / mps.PID_FILE).write_text(content)
    check_mps({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)})
