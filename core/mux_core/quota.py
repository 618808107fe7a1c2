"""KV quotas in head units: who may hold how much of the pool, re-shared by what is wanted.

Every member has a floor nobody takes and a limit it never passes. What the floors leave is
borrowed: `adapt` shares it max-min fairly over what members use and want, then spreads the rest,
so quota moves from members that leave theirs idle to those that run short. It looks at the
present only, so calling it twice changes nothing. Sum of quotas <= total, always.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mux_core.errors import SpecError

ADAPT_EVERY_S: Final = 1.0
ADAPT_AFTER_HOLD_S: Final = 0.05
URGENT_AFTER_S: Final = 2.0
"""Quotas are looked at so often, so soon after a member was held for lack of KV; past the last one
its want comes before all borrowing."""
_LEAST_RATE: Final = 0.1
"""Requests/s a member counts for when KV is shared, though its plan expected none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaClaim:
    """One member's claim; all in units. `wanted`: beyond what is used. `weight` splits ties."""

    model: str
    floor: int
    limit: int
    used: int = 0
    wanted: int = 0
    weight: float = 1.0


def claim_weight(rate: float, *, units_per_token: float) -> float:
    """Weight of a member whose plan counts on `rate` requests/s: what is borrowed then holds as
    many tokens per request/s of any member. By rate alone, who needs most per token would bear
    nearly all of a shortage.
    """
    return (_LEAST_RATE + rate) * units_per_token


def ceiling(model: str, claims: Sequence[QuotaClaim], total: int) -> int:
    """The most units `model` can ever hold: its limit, or what the others' floors leave."""
    others = sum(c.floor for c in claims if c.model != model)
    own = next(c for c in claims if c.model == model)
    return min(own.limit, total - others)


def check_floors(claims: Sequence[QuotaClaim], total: int) -> None:
    """Raises SpecError when the floors do not fit together."""
    floors = sum(c.floor for c in claims)
    if floors > total:
        raise SpecError(f"guaranteed KV of {len(claims)} models is {floors} units, the pool has "
                        f"{total} for KV; lower kv_guaranteed_bytes or remove a model")  # fmt: skip


def adapt(
    claims: Sequence[QuotaClaim], total: int, *, urgent: str | None = None
) -> Mapping[str, int]:
    """Quotas by model. `urgent` names a member whose want comes before all borrowing of others."""
    check_floors(claims, total)
    order = sorted(claims, key=lambda c: c.model)
    quotas = {c.model: c.floor for c in order}
    spare = total - sum(quotas.values())
    for c in order:
        if c.model == urgent:
            extra = max(0, min(spare, min(c.used + c.wanted, c.limit) - c.floor))
            quotas[c.model] += extra
            spare -= extra
    demand = {c.model: min(c.used + c.wanted, c.limit) - quotas[c.model] for c in order}
    spare = _pour(spare, order, quotas, demand)
    room = {c.model: c.limit - quotas[c.model] for c in order}
    _pour(spare, order, quotas, room)
    return quotas


def _pour(
    spare: int, order: Sequence[QuotaClaim], quotas: dict[str, int], room: Mapping[str, int]
) -> int:
    """Adds `spare` to `quotas` by weight, never beyond `room`; what is left over."""
    # Fullest first: whoever needs least per weight is served whole, the rest share what remains.
    thirsty = sorted((c for c in order if room[c.model] > 0),
                     key=lambda c: (room[c.model] / _weight(c), c.model))  # fmt: skip
    weights = sum(_weight(c) for c in thirsty)
    for c in thirsty:
        share = min(room[c.model], int(spare * _weight(c) / weights))
        quotas[c.model] += share
        spare -= share
        weights -= _weight(c)
    return spare


def _weight(claim: QuotaClaim) -> float:
    return max(claim.weight, 1e-6)
