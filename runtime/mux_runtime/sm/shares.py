"""How many SMs a share is, and what it means when a host sees another number."""

from typing import Final

from mux_core.errors import SpecError
from mux_core.reasons import Reason

STEP: Final = 2
"""SMs come in pairs (one TPC). NVIDIA says that a limit is rounded to what the hardware supports,
not whether up or down; until that is measured both neighbouring pairs are taken."""


class ShareNotVerified(SpecError):
    """A host sees other SMs than planned; `reason` is one of ShareVerified's. Not to be granted."""

    def __init__(self, message: str, *, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


def expected_sms(percent: int, gpu_sms: int) -> tuple[int, int]:
    """The least and the most SMs that a share of `percent` of `gpu_sms` may be seen as."""
    exact_pairs = percent * gpu_sms / 100 / STEP
    low, high = int(exact_pairs) * STEP, -int(-exact_pairs // 1) * STEP
    return max(1, low), max(1, min(high, gpu_sms))


def check_share(*, host: str, percent: int, seen: int, gpu_sms: int) -> None:
    """Raises ShareNotVerified unless `seen` is what `percent` must look like."""
    low, high = expected_sms(percent, gpu_sms)
    if low <= seen <= high:
        return
    unlimited = seen == gpu_sms
    reason = Reason.NO_LIMIT_OBSERVED if unlimited else Reason.SM_COUNT_MISMATCH
    said = f"{low}" if low == high else f"{low} to {high}"
    why = ("MPS did not limit it: look for a wrong pipe directory" if unlimited
           else "look at the MPS daemon's log")  # fmt: skip
    raise ShareNotVerified(f"host {host}: sees {seen} of {gpu_sms} SMs, its share of {percent} % "
                           f"is {said}; {why}", reason=reason)  # fmt: skip
