"""What this machine's cores did so far: the door to the first line of /proc/stat (proc_stat(5))."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_STAT: Final = Path("/proc/stat")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_USER, _NICE, _SYSTEM, _STEAL = 1, 2, 3, 8


@dataclass(frozen=True, slots=True)
class CoreTime:
    """Seconds of all cores together: those in which they ran processes, and those in which they
    should have, but the host of this virtual machine ran others."""

    ran_s: float
    stolen_s: float

    @classmethod
    def now(cls) -> Self:
        """Since the machine started."""
        words = _STAT.read_text().split(maxsplit=_STEAL + 1)
        ran = sum(int(words[column]) for column in (_USER, _NICE, _SYSTEM))
        return cls(ran / _TICKS, int(words[_STEAL]) / _TICKS)

    def since(self, before: Self) -> Self:
        return type(self)(self.ran_s - before.ran_s, self.stolen_s - before.stolen_s)

    @property
    def taken(self) -> float:
        """Seconds for which a core had to be there for each that a process ran by its own clock.

        That clock leaves out what was stolen, where Linux was built with
        CONFIG_PARAVIRT_TIME_ACCOUNTING, as distributions' kernels are.
        """
        return 1 + self.stolen_s / self.ran_s if self.ran_s > 0 else 1.0
