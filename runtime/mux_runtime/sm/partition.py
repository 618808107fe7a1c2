"""The seam to whatever splits a GPU's SMs between the engine hosts of a unit.

A share is asked for in a process's environment, before its first CUDA call, and is trusted only
after that process has told how many SMs it sees. A new share of a running host takes effect at
its next start. Fakes live with the tests.
"""

import contextlib
from dataclasses import dataclass
from typing import Protocol

from mux_core.reasons import Reason
from mux_runtime.sm.driver import SeenGpu, see_gpu_outside_mps
from mux_runtime.sm.mps import MpsControl, MpsPaths, MpsUnavailable, client_environment
from mux_runtime.sm.shares import ShareNotVerified, check_share


class SmPartitioner(Protocol):
    """Gives shares to processes that are yet to start and checks those that have."""

    def environment(self, percent: int) -> dict[str, str]:
        """What to add to the environment of a process that is to have `percent` of the SMs."""
        ...

    def verify(self, host: str, *, pid: int, percent: int, seen_sms: int) -> None:
        """Checks an open host. May block, so not in an event loop. Raises ShareNotVerified."""
        ...

    def release(self, pid: int) -> None:
        """Ends what a process runs on the GPU; to be called before it is killed. May block."""
        ...


@dataclass(frozen=True, slots=True)
class NoPartition:
    """No GPU: the scheduler's admission alone bounds the shares, so there is nothing to see."""

    def environment(self, percent: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ""}

    def verify(self, host: str, *, pid: int, percent: int, seen_sms: int) -> None:
        return

    def release(self, pid: int) -> None:
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsPartition:
    """Shares of one GPU by a daemon of our own; `gpu` is the whole GPU as seen outside of it."""

    control: MpsControl
    gpu: SeenGpu

    @classmethod
    def of(cls, paths: MpsPaths) -> "MpsPartition":
        """Over the daemon that serves `paths`. Raises DriverUnavailable."""
        return cls(control=MpsControl(paths=paths), gpu=see_gpu_outside_mps(paths.outside))

    def environment(self, percent: int) -> dict[str, str]:
        return {**client_environment(self.control.paths, percent),
                "CUDA_VISIBLE_DEVICES": self.gpu.uuid}  # fmt: skip

    def verify(self, host: str, *, pid: int, percent: int, seen_sms: int) -> None:
        check_share(host=host, percent=percent, seen=seen_sms, gpu_sms=self.gpu.sms)
        if pid not in self.control.clients():
            raise ShareNotVerified(
                f"host {host}: process {pid} is no client of this unit's MPS daemon; look for a "
                f"CUDA_MPS_PIPE_DIRECTORY other than {self.control.paths.pipe}",
                reason=Reason.NO_LIMIT_OBSERVED)  # fmt: skip

    def release(self, pid: int) -> None:
        with contextlib.suppress(MpsUnavailable):
            self.control.terminate(pid)
