"""SM sharing without a GPU: fakes of the partitioner, and a fake MPS and driver as real files."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mux_core.reasons import Reason
from mux_runtime.nvml import GpuDevice
from mux_runtime.sm.shares import ShareNotVerified, check_share

FAKES = Path(__file__).parent / "sm_fakes"
SMS = 132


@dataclass
class FakePartition:
    """Keeps `SmPartitioner`. `kind`: none, exact, wrong share or refusing."""

    kind: str = "exact"
    asked: list[int] = field(default_factory=list)
    released: list[int] = field(default_factory=list)

    def environment(self, percent: int) -> dict[str, str]:
        self.asked.append(percent)
        return {} if self.kind == "none" else {"FAKE_SHARE": str(percent)}

    def verify(self, host: str, *, pid: int, percent: int, seen_sms: int) -> None:
        match self.kind:
            case "exact":
                check_share(host=host, percent=percent, seen=percent * SMS // 200 * 2, gpu_sms=SMS)
            case "wrong share":
                check_share(host=host, percent=percent, seen=SMS, gpu_sms=SMS)
            case "refusing":
                raise ShareNotVerified(f"host {host}: refused", reason=Reason.MPS_UNAVAILABLE)

    def release(self, pid: int) -> None:
        self.released.append(pid)


def gpu(**changes: object) -> GpuDevice:
    return GpuDevice(**{
        "index": 0, "uuid": "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f", "name": "Fake GPU",
        "memory": 80 << 30, "memory_used": 0, "mig_enabled": False, "processes": {},
        **changes})  # type: ignore[arg-type]  # fmt: skip


def install_fakes(folder: Path) -> Mapping[str, str]:
    """A fake control program and a fake libcuda below `folder`; the environment that finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(f"#!{sys.executable}\n{(FAKES / program.name).read_text()}")
    program.chmod(0o755)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1",
                    FAKES / "libcuda.c"], check=True)  # fmt: skip
    return {"PATH": f"{folder}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(folder)}
