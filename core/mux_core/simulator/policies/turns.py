"""Policies without quotas: whoever waits longest first, and plain turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mux_core.adbs import Limits, MemberLoad, UnitLoad
from mux_core.engine import Phase
from mux_core.quota import QuotaClaim
from mux_core.simulator.policies.replayed import OVERBOOKED, Launches, Replayed, whole_pool
from mux_core.simulator.policy import Decision, Happening, Queue


@dataclass(slots=True, kw_only=True)
class _Turns:
    """What both have in common: one pool, restart on preemption, a round per event."""

    limits: Limits = OVERBOOKED
    _books: Replayed = field(init=False)

    def __post_init__(self) -> None:
        self._books = Replayed(limits=self.limits)

    def quotas(
        self, claims: Sequence[QuotaClaim], total: int, now: float, *, urgent: str | None = None
    ) -> Mapping[str, int]:
        return whole_pool(claims, total)

    def happened(self, what: Happening, model: str, now: float) -> None:
        self._books.happened(what, model)

    def _can_prefill(self, launches: Launches, m: MemberLoad) -> bool:
        return m.prefill_idle and launches.wants_prefill(m, self.limits.max_seqs)


@dataclass(slots=True, kw_only=True)
class Fcfs(_Turns):
    """The longest waiting job of all LLMs first; the first that lacks SMs stops the rest.

    A queued request waits since it arrived, one that decodes since its last step ended.
    """

    name: str = "fcfs"
    _since: dict[str, float] = field(default_factory=dict)

    def decide(self, load: UnitLoad, queues: Sequence[Queue], now: float) -> Decision:
        self._books.harvest(load)
        launches = Launches(self._books, load)
        launches.resume()
        for grant in launches.grants:
            self._since.pop(grant.model, None)
        for _, phase, m in sorted(self._jobs(launches, queues, now), key=_waiting):
            if not launches.fits(m, phase):
                break
            if phase is Phase.PREFILL:
                launches.prefill(m, self.limits.max_seqs)
            elif launches.decode(m):
                self._since.pop(m.model)
        return Decision(round=launches.round(), keeps_output=False)

    def _jobs(
        self, launches: Launches, queues: Sequence[Queue], now: float
    ) -> list[tuple[float, Phase, MemberLoad]]:
        jobs = []
        for m, queue in zip(launches.load.members, queues, strict=True):
            if self._can_prefill(launches, m):
                jobs.append((now if queue.oldest is None else queue.oldest, Phase.PREFILL, m))
            if launches.waits_to_decode(m):
                jobs.append((self._since.setdefault(m.model, now), Phase.DECODE, m))
        return jobs


@dataclass(slots=True, kw_only=True)
class RoundRobin(_Turns):
    """Every LLM in turn: a prefill if one waits and SMs suffice, else a decode step."""

    name: str = "roundrobin"

    def decide(self, load: UnitLoad, queues: Sequence[Queue], now: float) -> Decision:
        self._books.harvest(load)
        launches = Launches(self._books, load)
        launches.resume()
        for m in self._books.rotation(load.members, Phase.PREFILL):
            if self._can_prefill(launches, m) and launches.fits(m, Phase.PREFILL):
                launches.prefill(m, self.limits.max_seqs)
        for m in self._books.rotation(load.members, Phase.DECODE):
            if launches.may_decode(m):
                launches.decode(m)
        return Decision(round=launches.round(), keeps_output=False)


def _waiting(job: tuple[float, Phase, MemberLoad]) -> tuple[float, str, str]:
    since, phase, m = job
    return since, phase, m.model
