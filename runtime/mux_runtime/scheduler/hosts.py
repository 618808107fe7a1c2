"""One engine host as the scheduler sees it: its life and its requests."""

import asyncio
from dataclasses import dataclass, field

from mux_core.engine import Phase
from mux_core.ledger import HostEpoch
from mux_core.lifecycle import HOST, HostEvent, HostState, advance
from mux_runtime.kvpool.allocator import Owner
from mux_runtime.scheduler.links import Host
from mux_runtime.scheduler.requests import Request


@dataclass(slots=True, kw_only=True, eq=False)
class HostSlot:
    """The place of one (member, phase), filled by one process after the other.

    `newcomers` are residents that the process was not given yet. `aborts` wait for the host's next
    idle moment. `pace_ms` is a running mean per step. `call` is the task that talks to the host.
    `percent` is planned, `started_percent` what the present process was started with.
    """

    model: str
    phase: Phase
    percent: int
    started_percent: int = 0
    epoch: int = 0
    state: HostState = HostState.STARTING
    host: Host | None = None
    restarts: int = 0
    steps: int = 0
    pace_ms: float = 0.0
    starved_rows: int = 0
    residents: dict[str, Request] = field(default_factory=dict)
    newcomers: dict[str, Request] = field(default_factory=dict)
    aborts: list[str] = field(default_factory=list)
    call: asyncio.Task[None] | None = None

    @property
    def account(self) -> HostEpoch:
        """Its name in the ledger of rows."""
        return f"{self.model}/{self.phase}", self.epoch

    @property
    def owner(self) -> Owner:
        return Owner(self.model, self.epoch)

    @property
    def pid(self) -> int:
        return self.host.pid if self.host is not None else 0

    @property
    def seen_sms(self) -> int:
        """SMs that the process sees; 0: not measured."""
        return self.host.sms if self.host is not None else 0

    @property
    def is_idle(self) -> bool:
        """Whether it can be granted a step now."""
        return self.is_callable and not self.aborts

    @property
    def is_callable(self) -> bool:
        return (
            self.state is HostState.READY and self.host is not None and not self.host.lost.is_set()
        )

    async def quiet(self) -> None:
        """Until the call under way has ended, well or not."""
        if self.call is not None:
            await asyncio.wait([self.call])

    def happen(self, event: HostEvent) -> None:
        role = f"{self.phase} host of {self.model}"
        self.state = advance(HOST, self.state, event, role=role)

    def opened(self, host: Host) -> None:
        self.host, self.steps, self.starved_rows = host, 0, 0
        self.happen(HostEvent.OPENED)

    def emptied(self) -> list[Request]:
        """The host is gone: its requests, in order of arrival; nothing is left here."""
        requests = sorted(self.residents.values(), key=lambda r: r.order)
        self.residents.clear()
        self.newcomers.clear()
        self.aborts.clear()
        self.host, self.starved_rows = None, 0
        return requests
