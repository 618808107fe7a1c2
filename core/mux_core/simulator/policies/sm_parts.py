"""SMs as the released scheduler books them: ten parts, each held by at most two jobs."""

from dataclasses import dataclass, field
from typing import Final

from mux_core.engine import Phase

Job = tuple[str, Phase]
"""A step in flight: whose, and of which phase."""

PARTS: Final = 10
OVERBOOKED: Final = 2
"""Parts a job may take although another holds them; the release writes 2 into every plan."""


@dataclass(slots=True)
class SmParts:
    """Which job holds which parts. A job needs a part for every started 10 % of the SMs."""

    _holders: list[int] = field(default_factory=lambda: [0] * PARTS)
    _jobs: dict[Job, tuple[int, ...]] = field(default_factory=dict)

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(self._jobs)

    def fits(self, percent: int) -> bool:
        """Whether the free parts, and at most two that are held once, suffice."""
        once = self._holders.count(1)
        return parts_of(percent) <= self._holders.count(0) + min(OVERBOOKED, once)

    def take(self, job: Job, percent: int) -> None:
        """Books the parts of a job that fits; free ones first."""
        order = sorted(range(PARTS), key=lambda part: (self._holders[part], part))
        chosen = tuple(order[: parts_of(percent)])
        for part in chosen:
            self._holders[part] += 1
        self._jobs[job] = chosen

    def release(self, job: Job) -> None:
        for part in self._jobs.pop(job):
            self._holders[part] -= 1


def parts_of(percent: int) -> int:
    return -(-percent * PARTS // 100)
