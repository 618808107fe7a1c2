"""Allocator and ledger together, as a scheduler moves rows: nothing leaks on any path."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvpool_builders import geometry
from mux_core.engine import Grant, KVHandoff, Phase, Row, StepResult
from mux_core.ledger import RowLedger
from mux_runtime.kvpool.allocator import Owner, open_allocator

SHAPE = geometry(layers=3, kv_heads=2)
MOVES = st.lists(
    st.tuples(
        st.sampled_from(["step", "adopt", "abandon", "withdraw", "crash"]),
        st.integers(0, 1), st.integers(0, 5), st.integers(0, 5),
    ),
    max_size=40,
)  # fmt: skip


class Scheduler:
    """Moves rows between two hosts of one member, keeping its own lists."""

    def __init__(self) -> None:
        self.pool, self.ledger = open_allocator(500), RowLedger()
        self.owners = [Owner("chat", 0), Owner("chat", 1)]
        self.rows: list[list[Row]] = [[], []]
        self.transit: list[KVHandoff] = []
        self.clock = 1
        for owner in self.owners:
            self.ledger.open(owner, SHAPE)

    def step(self, host: int, lease: int, moves: int) -> None:
        """Leases, uses all but one, frees one row and hands others on."""
        owner, self.clock = self.owners[host], self.clock + 1
        if not self.pool.can_lease(SHAPE, lease):
            return
        rows = self.pool.lease(owner, SHAPE, lease)
        self.ledger.lease(owner, Grant(step=self.clock, phases=frozenset(Phase), token_budget=1,
                                       max_seqs=1, lease=rows))  # fmt: skip
        used = max(0, lease - 1)
        held = self.rows[host] + list(rows[:used])
        freed, handed, self.rows[host] = held[:1], held[1 : 1 + moves], held[1 + moves :]
        handoff = KVHandoff(geometry=SHAPE, rows=tuple(handed), num_tokens=1)
        result = StepResult(step=self.clock, used=used, freed=tuple(freed), handoffs={"r": handoff})
        self.pool.free(self.ledger.settle(owner, result), SHAPE)
        self.transit.append(handoff)

    def adopt(self, host: int, pick: int, _: int) -> None:
        if self.transit:
            handoff = self.transit.pop(pick % len(self.transit))
            self.ledger.adopt(self.owners[host], handoff)
            self.pool.retag(handoff.rows, SHAPE, self.owners[host])
            self.rows[host] += handoff.rows

    def abandon(self, _: int, pick: int, __: int) -> None:
        if self.transit:
            handoff = self.transit.pop(pick % len(self.transit))
            self.pool.free(self.ledger.abandon(handoff), SHAPE)

    def withdraw(self, host: int, count: int, _: int) -> None:
        rows, self.rows[host] = self.rows[host][:count], self.rows[host][count:]
        handoff = KVHandoff(geometry=SHAPE, rows=tuple(rows), num_tokens=1)
        self.ledger.withdraw(self.owners[host], handoff)
        self.transit.append(handoff)

    def crash(self, host: int, _: int, __: int) -> None:
        """The host dies with a lease in flight; rows in transit survive it."""
        owner, self.clock = self.owners[host], self.clock + 1
        for handoff in self.transit:
            self.pool.retag(handoff.rows, SHAPE, Owner("chat", -1))
        lease = self.pool.lease(owner, SHAPE, 1) if self.pool.can_lease(SHAPE, 1) else ()
        self.ledger.lease(owner, Grant(step=self.clock, phases=frozenset(Phase), token_budget=1,
                                       max_seqs=1, lease=lease))  # fmt: skip
        lost = self.ledger.close(owner)
        assert sorted(lost) == sorted([*self.rows[host], *lease])
        assert self.pool.reclaim(owner) == len(lost) * SHAPE.row_units
        self.owners[host], self.rows[host] = Owner("chat", self.clock), []
        self.ledger.open(self.owners[host], SHAPE)


@settings(deadline=None)
@given(MOVES)
def test_after_any_moves_ledger_and_pool_agree(moves: list[tuple[str, int, int, int]]) -> None:
    scheduler = Scheduler()
    for name, host, first, second in moves:
        getattr(scheduler, name)(host, first, second)
        scheduler.pool.audit()
        scheduler.ledger.audit(scheduler.pool.owned_units)
    for host in (0, 1):
        scheduler.crash(host, 0, 0)
    while scheduler.transit:
        scheduler.abandon(0, 0, 0)
    assert scheduler.pool.free_units == 500
