"""Who owns which KV rows: one account per host epoch, and the rows between two hosts.

    owned after a step = before + adopted + used - freed - handed off

A row is leased for one step, then the host's as far as it was used, and leaves it freed or handed
off; a handed-off row is *in transit* until another host adopts it or it is given back. Shared rows
(a cached prefix) are nobody's here: who caches them counts references. A broken rule is an
InvariantError that names the host and the row, and changes nothing.

A row is known by its first run: runs are disjoint, so no two rows share it. That keeps a step's
cost at a dictionary access per row that moves.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from mux_core.engine import Grant, KVGeometry, KVHandoff, Row, StepResult
from mux_core.errors import InvariantError

HostEpoch = tuple[str, int]
"""A host and the epoch it runs in; a restarted host is another one."""

_Rows = dict[int, Row]


@dataclass(slots=True, kw_only=True)
class _Account:
    """What one host epoch owns, and the lease of its step in flight."""

    row_units: int
    owned: _Rows = field(default_factory=dict)
    grant: Grant | None = None

    @property
    def leased(self) -> tuple[Row, ...]:
        return self.grant.lease if self.grant else ()


class RowLedger:
    """The scheduler's account of every leased row of one pool."""

    def __init__(self) -> None:
        self._accounts: dict[HostEpoch, _Account] = {}
        self._transit: _Rows = {}
        self._transit_units = 0

    @property
    def units(self) -> int:
        """Head units of all rows: owned, leased for a step and in transit."""
        held = ((len(a.owned) + len(a.leased)) * a.row_units for a in self._accounts.values())
        return sum(held) + self._transit_units

    def owned(self, host: HostEpoch) -> int:
        """Rows a host owns, its lease not counted."""
        return len(self._account(host).owned)

    def open(self, host: HostEpoch, geometry: KVGeometry) -> None:
        """Opens the account of a host that has just started."""
        if host in self._accounts:
            raise InvariantError(f"ledger: host {_name(host)} is opened twice")
        self._accounts[host] = _Account(row_units=geometry.row_units)

    def lease(self, host: HostEpoch, grant: Grant) -> None:
        """Notes the rows a grant gives `host` for its step."""
        account = self._account(host)
        if account.grant is not None:
            raise InvariantError(f"ledger: host {_name(host)} is granted step {grant.step} while "
                                 f"step {account.grant.step} runs")  # fmt: skip
        _need_absent(host, "is leased a row it owns", grant.lease, account.owned)
        account.grant = grant

    def settle(self, host: HostEpoch, result: StepResult) -> tuple[Row, ...]:
        """Books a step's result. Answers the rows that are nobody's now: unused and freed."""
        account, grant = self._account(host), self._grant(host, result)
        used, unused = grant.lease[: result.used], grant.lease[result.used :]
        gained = _by_first(used)
        handed = [row for handoff in result.handoffs.values() for row in _moving(handoff)]
        for row in (leaving := [*result.freed, *handed]):
            if gained.get(row[0]) != row and account.owned.get(row[0]) != row:
                raise InvariantError(f"ledger: host {_name(host)} lets go of row {_brief(row)} "
                                     f"in step {result.step} and does not own it")  # fmt: skip
        _need_distinct(host, leaving)
        account.grant = None
        account.owned |= gained
        for row in leaving:
            del account.owned[row[0]]
        self._into_transit(handed, account.row_units)
        return unused + result.freed

    def withdraw(self, host: HostEpoch, handoff: KVHandoff) -> None:
        """Books the rows that `abort` answered: no longer the host's, in transit."""
        account, rows = self._account(host), _moving(handoff)
        _need_distinct(host, rows)
        _need_present(host, "answers an abort with a row it does not own", rows, account.owned)
        for row in rows:
            del account.owned[row[0]]
        self._into_transit(rows, account.row_units)

    def adopt(self, host: HostEpoch, handoff: KVHandoff) -> None:
        """Books that `host` has accepted a request with these rows."""
        account, rows = self._account(host), _moving(handoff)
        self._out_of_transit(host, rows, handoff.geometry.row_units)
        account.owned |= _by_first(rows)

    def abandon(self, handoff: KVHandoff) -> tuple[Row, ...]:
        """Ends a handoff that nobody adopts. Answers the rows that are nobody's now."""
        rows = _moving(handoff)
        self._out_of_transit(("nobody", 0), rows, handoff.geometry.row_units)
        return rows

    def close(self, host: HostEpoch) -> tuple[Row, ...]:
        """Closes the account of a host that is gone. Answers all it had, the lease included."""
        account = self._account(host)
        del self._accounts[host]
        return (*account.owned.values(), *account.leased)

    def audit(self, owned_units: int) -> None:
        """Raises InvariantError unless these are all the pool's owned units, each row once."""
        if self.units != owned_units:
            raise InvariantError(
                f"ledger: {self.units} units in accounts and in transit, the pool counts "
                f"{owned_units} owned; rows leaked, or counted twice"
            )
        seen: set[int] = set(self._transit)
        for host, account in self._accounts.items():
            firsts = set(chain(account.owned, (row[0] for row in account.leased)))
            if twice := seen & firsts:
                raise InvariantError(f"ledger: host {_name(host)} owns row [{min(twice)}, ...], "
                                     "and so does another")  # fmt: skip
            seen |= firsts

    def _account(self, host: HostEpoch) -> _Account:
        account = self._accounts.get(host)
        if account is None:
            raise InvariantError(f"ledger: host {_name(host)} has no account; it is gone, "
                                 "or never opened")  # fmt: skip
        return account

    def _grant(self, host: HostEpoch, result: StepResult) -> Grant:
        """The grant that `result` answers."""
        grant = self._account(host).grant
        if grant is None or grant.step != result.step:
            raise InvariantError(f"ledger: host {_name(host)} answers step {result.step}, granted "
                                 f"is {grant.step if grant else 'none'}")  # fmt: skip
        if not 0 <= result.used <= len(grant.lease):
            raise InvariantError(f"ledger: host {_name(host)} used {result.used} rows of a lease "
                                 f"of {len(grant.lease)}")  # fmt: skip
        return grant

    def _into_transit(self, rows: Iterable[Row], row_units: int) -> None:
        for row in rows:
            self._transit[row[0]] = row
            self._transit_units += row_units

    def _out_of_transit(self, host: HostEpoch, rows: tuple[Row, ...], row_units: int) -> None:
        _need_distinct(host, rows)
        _need_present(host, "takes a row that is not in transit", rows, self._transit)
        for row in rows:
            del self._transit[row[0]]
            self._transit_units -= row_units


def _moving(handoff: KVHandoff) -> tuple[Row, ...]:
    """The rows that change owner; shared ones do not."""
    return handoff.rows[handoff.shared_rows :]


def _by_first(rows: Iterable[Row]) -> _Rows:
    return {row[0]: row for row in rows}


def _need_present(host: HostEpoch, wrong: str, rows: Iterable[Row], among: _Rows) -> None:
    for row in rows:
        if among.get(row[0]) != row:
            raise InvariantError(f"ledger: host {_name(host)} {wrong}: {_brief(row)}")


def _need_absent(host: HostEpoch, wrong: str, rows: tuple[Row, ...], among: _Rows) -> None:
    _need_distinct(host, rows)
    for row in rows:
        if row[0] in among:
            raise InvariantError(f"ledger: host {_name(host)} {wrong}: {_brief(row)}")


def _need_distinct(host: HostEpoch, rows: Iterable[Row]) -> None:
    seen: set[int] = set()
    for row in rows:
        if row[0] in seen:
            raise InvariantError(f"ledger: host {_name(host)} names row {_brief(row)} twice")
        seen.add(row[0])


def _name(host: HostEpoch) -> str:
    return f"{host[0]}#{host[1]}"


def _brief(row: Row) -> str:
    return f"[{row[0]}, ...]" if len(row) > 1 else f"[{row[0]}]"
