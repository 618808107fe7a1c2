"""How fast this machine is meanwhile, by a fixed piece of work that is timed now and then.

Virtual machines share their processors with others and may be half as fast again for minutes; and
what others take of them is missing in the seconds that our processes ran, so it is added. A
profile notes how long the work took while it asked a unit's models, a comparison how long it took
beside its load, and takes the profile's costs times the ratio. Both find the caches as a load
leaves them.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import IO, Final

from mux_core.errors import PeerError
from mux_runtime.core_time import CoreTime

PROGRAM: Final = "mux_runtime.engines.torch.yardstick"
STARTS_WITHIN_S: Final = 120.0
_LOOK_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Sample:
    """At a moment of `time.monotonic`: seconds that the work ran, and what all cores did so far."""

    at: float
    ran_s: float
    machine: CoreTime


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a process that takes samples has said."""

    said: IO[str]

    def samples(self) -> list[Sample]:
        self.said.seek(0)
        lines = [map(float, line.split()) for line in self.said if line.endswith("\n")]
        return [Sample(at, ran_s, CoreTime(*machine)) for at, ran_s, *machine in lines]

    def mean(self, begin: float, end: float) -> float:
        """Mean seconds for which the work had to have a core, between two moments; 0 where it was
        not timed."""
        found = [sample for sample in self.samples() if begin <= sample.at < end]
        if not found:
            return 0.0
        taken = found[-1].machine.since(found[0].machine).taken
        return taken * fmean(sample.ran_s for sample in found)


@contextmanager
def yardstick() -> Iterator[Yardstick]:
    """Samples from a first one on, taken by a process of their own. PeerError: none came."""
    # Appended to, whatever place its readers left it at.
    with tempfile.TemporaryFile("a+") as said:
        process = subprocess.Popen([sys.executable, "-m", PROGRAM], stdin=subprocess.PIPE,
                                   stdout=said)  # fmt: skip
        assert process.stdin is not None
        try:
            found = Yardstick(said)
            _await_sample(process, found)
            yield found
        finally:
            process.stdin.close()
            process.wait()


def _await_sample(process: subprocess.Popen[bytes], found: Yardstick) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not found.samples():
        if process.poll() is not None or time.monotonic() > deadline:
            raise PeerError(f"yardstick: no sample within {STARTS_WITHIN_S:.0f} s; its process "
                            f"has exit code {process.poll()}")  # fmt: skip
        time.sleep(_LOOK_S)
