"""Head units of the unit's GPU among its members: weights reserved, KV floors, limits, quotas.

One account: a member's weights take their units away from KV for as long as it is here. When KV
that was lent must make room for a new member's weights, borrowers get nothing new and, after a
moment, give back their youngest requests.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mux_core.batching import wanted_rows
from mux_core.errors import CapacityError
from mux_core.quota import QuotaClaim, adapt, claim_weight
from mux_core.units import format_bytes
from mux_core.unitspec import MemberSpec
from mux_runtime.engines.host import EngineDescription
from mux_runtime.kvpool.allocator import Allocator, Owner, Span
from mux_runtime.scheduler.keeping import DoesNotFit
from mux_runtime.scheduler.members import Member


@dataclass(slots=True, kw_only=True)
class UnitMemory:
    """`claimed`: units promised to weights that are not reserved yet, by model."""

    allocator: Allocator
    unit_bytes: int
    claimed: dict[str, int] = field(default_factory=dict)

    @property
    def kv_units(self) -> int:
        """Units that weights leave."""
        taken = self.allocator.reserved_units + sum(self.claimed.values())
        return self.allocator.total_units - taken

    @property
    def free_units(self) -> int:
        """Units a round may lease: what weights wait for is not among them."""
        return max(0, self.allocator.free_units - sum(self.claimed.values()))

    def weight_units(self, description: EngineDescription) -> int:
        return -(-description.weight_bytes // self.unit_bytes)

    def size(self, member: Member, spec: MemberSpec) -> None:
        """Takes floor and limit from the spec."""
        member.floor = spec.kv_guaranteed_bytes // self.unit_bytes
        member.limit = min(spec.kv_limit_bytes // self.unit_bytes, self.allocator.total_units)

    def claim(self, member: Member, others: Iterable[Member]) -> None:
        """Promises a member its weights. Raises DoesNotFit with the figures."""
        description = member.description
        weights = self.weight_units(description)
        row = description.geometry.row_units
        floors = sum(other.floor for other in others) + member.floor
        need = weights + max(floors, floors - member.floor + row)
        if need > self.kv_units:
            raise DoesNotFit(
                f"model {member.model}: weights {self._text(weights)}, KV floor "
                f"{self._text(member.floor)} and one KV block {self._text(row)} beside floors of "
                f"{self._text(floors - member.floor)} need {self._text(need)}; the unit has "
                f"{self._text(self.kv_units)} left of {self._text(self.allocator.total_units)}; "
                "give the unit more memory or place the model elsewhere"
            )
        self.claimed[member.model] = weights

    def try_reserve(self, model: str) -> tuple[Span, ...] | None:
        """Turns the promise into a reservation when enough units are free; None if not."""
        try:
            spans = self.allocator.reserve(_weights_owner(model), self.claimed[model])
        except CapacityError:
            return None
        del self.claimed[model]
        return spans

    def release(self, model: str) -> None:
        self.claimed.pop(model, None)
        self.allocator.release(_weights_owner(model))

    def ceiling(self, member: Member, members: Iterable[Member]) -> int:
        """The most units this member can ever hold."""
        others = sum(other.floor for other in members if other is not member)
        return max(0, min(member.limit, self.kv_units - others))

    def kv_tokens(self, member: Member, members: Iterable[Member]) -> int:
        """Prompt and output tokens one request of this member can ever have."""
        geometry = member.geometry
        return self.ceiling(member, members) // geometry.row_units * geometry.block_tokens

    def rebalance(self, members: Iterable[Member], *, urgent: str | None) -> None:
        """Shares the quotas again by what members hold and want."""
        claims = [
            QuotaClaim(
                model=m.model, floor=m.floor, limit=max(m.limit, m.floor),
                used=m.units_used(self.allocator), wanted=_wanted(m),
                weight=claim_weight(m.spec.rate, units_per_token=m.geometry.row_units
                                    / m.geometry.block_tokens),
            )
            for m in members if m.card is not None
        ]  # fmt: skip
        if sum(claim.floor for claim in claims) > self.kv_units:
            return
        quotas = adapt(claims, self.kv_units, urgent=urgent)
        for m in members:
            m.quota = quotas.get(m.model, 0)

    def _text(self, units: int) -> str:
        return format_bytes(units * self.unit_bytes)


def _wanted(member: Member) -> int:
    """Units that would let everything of this member run."""
    geometry = member.geometry
    rows = wanted_rows(
        member.growing_rows(), len(member.decode.residents), member.queue,
        member.prefill.residents.values(), block_tokens=geometry.block_tokens,
    )  # fmt: skip
    return rows * geometry.row_units


def _weights_owner(model: str) -> Owner:
    return Owner(f"weights:{model}", 0)
