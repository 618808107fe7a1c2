"""What a CPU step frees stays with the process for the next step.

A step's tensors are a few MiB that come and go. glibc gives them back to the kernel at once until
larger ones have taught it better, so a decode step of one size took a thousand page faults, twice
its time, until the first step of a larger size had run.
"""

import ctypes
from typing import Final

from mux_core.units import GIB, MIB

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Parameters of mallopt(3)."""
LARGEST: Final = 32 * MIB
"""Larger blocks come straight from the kernel; glibc takes no higher limit on 64 bits."""
KEPT: Final = GIB
"""So much may lie free at the heap's end."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed; False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST) and mallopt(_M_TRIM_THRESHOLD, KEPT))
