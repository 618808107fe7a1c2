"""Members and a toy unit for tests of the ADBS round: steps end when the test says so."""

from dataclasses import dataclass, field, replace
from typing import Any

from mux_core.adbs import Limits, MemberLoad, Round, Turn, UnitLoad, adbs_round
from mux_core.engine import Phase

LIMITS = Limits()


def member(model: str = "a", **changes: Any) -> MemberLoad:
    base = MemberLoad(
        model=model, prefill_percent=60, decode_percent=30, floor=0, quota=1000, row_units=1
    )
    return replace(base, **changes)


def waiting(model: str = "a", **changes: Any) -> MemberLoad:
    """A member with one prompt of ten tokens to compute."""
    changes = {"waiting": 1, "waiting_tokens": 10, "head_rows": 1, "batch_rows": 1} | changes
    return member(model, **changes)


def decoding(model: str = "a", **changes: Any) -> MemberLoad:
    """A member with one request to decode that needs no new row."""
    return member(model, **({"decoding": 1, "running": 1} | changes))


def decide(*members: MemberLoad, free: int = 1000, **load: Any) -> Round:
    limits = load.pop("limits", LIMITS)
    return adbs_round(UnitLoad(members=members, free_units=free, **load), limits)


def granted(outcome: Round) -> list[tuple[str, Phase]]:
    return [(grant.model, grant.phase) for grant in outcome.grants]


def held(outcome: Round) -> dict[tuple[str, Phase], str]:
    return {(hold.model, hold.phase): hold.why.value for hold in outcome.held}


@dataclass
class ToyUnit:
    """Members that always have the work they are given; steps are in flight until `end`."""

    members: dict[str, MemberLoad]
    limits: Limits = LIMITS
    turn: Turn = field(default_factory=Turn)
    flying: dict[tuple[str, Phase], int] = field(default_factory=dict)

    def round(self) -> Round:
        loads = tuple(
            replace(m, prefill_idle=(name, Phase.PREFILL) not in self.flying,
                    decode_idle=(name, Phase.DECODE) not in self.flying)
            for name, m in self.members.items()
        )  # fmt: skip
        outcome = adbs_round(
            UnitLoad(members=loads, free_units=10_000, sm_in_use=self.sms, turn=self.turn),
            self.limits,
        )
        self.turn = outcome.turn
        for grant in outcome.grants:
            key = (grant.model, grant.phase)
            assert key not in self.flying, "a busy host was granted"
            self.flying[key] = grant.percent
        assert self.sms <= self.limits.sm_percent
        return outcome

    @property
    def sms(self) -> int:
        return sum(self.flying.values())

    def end(self, index: int) -> None:
        if self.flying:
            del self.flying[sorted(self.flying)[index % len(self.flying)]]
