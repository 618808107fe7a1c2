"""KV rows in motion: allocator and ledger move together, so that neither can forget the other."""

from dataclasses import dataclass, field

from mux_core.engine import Grant, KVGeometry, KVHandoff, Row, StepResult
from mux_core.ledger import RowLedger
from mux_runtime.kvpool.allocator import Allocator, Owner
from mux_runtime.scheduler.hosts import HostSlot


@dataclass(slots=True)
class Rows:
    """Every leased row of the unit. A broken rule is an InvariantError and changes nothing.

    `frees` counts the times something became free: what could not be leased may now be.
    """

    allocator: Allocator
    frees: int = 0
    ledger: RowLedger = field(default_factory=RowLedger)

    def open(self, slot: HostSlot, geometry: KVGeometry) -> None:
        self.ledger.open(slot.account, geometry)

    def close(self, slot: HostSlot) -> None:
        """A host is gone: all it owned, its lease in flight included, is free."""
        if slot.host is not None:
            self.ledger.close(slot.account)
        self.allocator.reclaim(slot.owner)
        self.frees += 1

    def lease(self, slot: HostSlot, geometry: KVGeometry, rows: int) -> tuple[Row, ...]:
        return self.allocator.lease(slot.owner, geometry, rows) if rows else ()

    def grant(self, slot: HostSlot, grant: Grant) -> None:
        self.ledger.lease(slot.account, grant)

    def settle(self, slot: HostSlot, geometry: KVGeometry, result: StepResult) -> None:
        """Books a step; what it handed off is in transit, what it left is free."""
        free = self.ledger.settle(slot.account, result)
        self.allocator.free(free, geometry)
        self.frees += bool(free)
        for handoff in result.handoffs.values():
            self.allocator.retag(handoff.rows, geometry, Owner(slot.model, 0))

    def withdraw(self, slot: HostSlot, handoff: KVHandoff) -> None:
        """Rows that an abort gave back are free."""
        self.ledger.withdraw(slot.account, handoff)
        self.abandon(handoff)

    def adopt(self, slot: HostSlot, handoff: KVHandoff) -> None:
        self.ledger.adopt(slot.account, handoff)
        self.allocator.retag(handoff.rows, handoff.geometry, slot.owner)

    def abandon(self, handoff: KVHandoff) -> None:
        """Rows in transit that nobody will adopt are free."""
        self.allocator.free(self.ledger.abandon(handoff), handoff.geometry)
        self.frees += 1

    def audit(self) -> None:
        self.allocator.audit()
        self.ledger.audit(self.allocator.owned_units)
