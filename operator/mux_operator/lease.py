"""Leader election by one Lease: who may act.

Holding it is proved again every `renew_s`; whoever did not manage for `deadline_s` stops acting
and may go on when it can prove it again. Only when another took it is leadership lost for good:
then the process ends and starts as a standby.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from mux_core.errors import MuxError, PeerError

log = logging.getLogger(__name__)


class LeaseLost(MuxError):
    """Another process leads now."""


class Leases(Protocol):
    """What the election needs of the API server."""

    async def read(self) -> dict[str, Any] | None:
        """The Lease; None where there is none."""
        ...

    async def create(self, lease: dict[str, Any]) -> dict[str, Any]: ...

    async def replace(self, lease: dict[str, Any]) -> dict[str, Any]:
        """Raises PeerError when it changed since it was read."""
        ...


@dataclass(slots=True)
class Election:
    """One candidate. `leads` is set while it may act."""

    leases: Leases
    name: str
    namespace: str
    identity: str
    clock: Callable[[], float] = time.monotonic
    duration_s: float = 15.0
    deadline_s: float = 10.0
    renew_s: float = 2.0
    leads: asyncio.Event = field(default_factory=asyncio.Event)
    changed: Callable[[bool], None] = lambda leads: None
    _renewed_at: float = 0.0
    _was_leader: bool = False
    _seen: tuple[str, str] = ("", "")
    _seen_at: float = 0.0

    async def run(self) -> None:
        """Takes the Lease when it is free and keeps it. Raises LeaseLost."""
        while True:
            try:
                held = await self._try()
            except PeerError as error:
                log.warning("lease %s: %s", self.name, error)
                held = None
            self._note(held)
            await asyncio.sleep(self.renew_s)

    async def release(self) -> None:
        """Lets another candidate lead at once."""
        self.leads.clear()
        lease = await self.leases.read()
        if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
            lease["spec"]["holderIdentity"] = ""
            await self.leases.replace(lease)

    def _note(self, held: bool | None) -> None:
        """`held`: True and False are answers, None is none."""
        now = self.clock()
        if held:
            self._renewed_at = now
            self._was_leader = True
            if not self.leads.is_set():
                log.info("lease %s: %s leads", self.name, self.identity)
                self.leads.set()
                self.changed(True)
        elif held is False and self._was_leader:
            raise LeaseLost(f"lease {self.name}: another holds it; {self.identity} ends")
        elif self.leads.is_set() and now - self._renewed_at > self.deadline_s:
            log.warning("lease %s: not renewed for %.0f s; waiting", self.name, self.deadline_s)
            self.leads.clear()
            self.changed(False)

    async def _try(self) -> bool:
        lease = await self.leases.read()
        if lease is None:
            await self.leases.create(self._document({}))
            return True
        holder = lease["spec"].get("holderIdentity") or ""
        if holder not in ("", self.identity) and not self._expired(lease):
            return False
        await self.leases.replace({**lease, **self._document(lease)})
        return True

    def _expired(self, lease: dict[str, Any]) -> bool:
        """By our own clock: unchanged for its duration since we first saw it so."""
        state = (lease["spec"].get("holderIdentity", ""), lease["spec"].get("renewTime", ""))
        if state != self._seen:
            self._seen, self._seen_at = state, self.clock()
        return self.clock() - self._seen_at > self.duration_s

    def _document(self, lease: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = lease.get("spec", {})
        same = before.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self.duration_s),
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if same else now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (0 if same else 1),
        }
        metadata = lease.get("metadata", {"name": self.name, "namespace": self.namespace})
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata,
                "spec": spec}  # fmt: skip
