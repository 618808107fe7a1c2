"""What the unit scheduler knows of an engine: one protocol, its errors and its start-up values.

A host never searches the KV pool, never waits for work, rows or another host, and never evicts.
One call at a time. Rules of a step (rows as in `mux_core.engine`):

* A lease lives for one step; rows after the first `used` are the scheduler's when the result
  arrives. Rows owned afterwards = before + adopted + used - freed - handed off.
* A request starts in DECODE if its adopted KV covers all but its last token and that token is an
  output; else in PREFILL until it emits a token. An ungranted phase runs nothing.
* Lack of rows holds a request and sets `starved`. Preemption is the scheduler's: `abort`, then
  `add` of prompt and emitted tokens, with the rows or without.
* A host that serves prefill alone lets a `detach` request leave after ONE token: its rows are in
  `handoffs` and `finish` is HANDOFF, or STOP or LENGTH when that token ended the request. A host
  that decodes lets it leave at its finish, rows in `handoffs` as well.

    MuxError
     ├── SpecError
     │    ├── UnsupportedModel, UnsupportedVersion, GeometryMismatch   from open; no retry
     │    └── RequestRefused   from add; the host is healthy, rows stay the caller's
     ├── PeerError
     │    ├── AttachFailed     from open; restart with back-off
     │    └── EngineFault      any other; the host exits, never limps on
     └── InvariantError
          └── BadGrant         from step, before any work; the host is healthy
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mux_core.engine import Grant, HostStats, KVGeometry, KVHandoff, Phase, Sampling, StepResult
from mux_core.errors import BadGrant, PeerError, RequestRefused, SpecError
from mux_runtime.kvpool.client import Arena, WeightArena

__all__ = [
    "AttachFailed", "BadGrant", "EngineDescription", "EngineFault", "EngineHost",
    "GeometryMismatch", "Hello", "PoolHandle", "RequestRefused", "UnsupportedVersion",
    "WeightsHandle",
]  # fmt: skip


class UnsupportedVersion(SpecError):
    """An optional back-end is installed in a version that lacks a hook; names the hook."""


class GeometryMismatch(SpecError):
    """The checkpoint and what the pool, a handoff or a sealed arena says of it disagree."""


class AttachFailed(PeerError):
    """The pool's memory cannot be mapped now."""


class EngineFault(PeerError):
    """The host is gone or beyond trust; its epoch's rows and its lease are reclaimed."""


class PoolHandle(Protocol):
    """The pool owner as an engine needs it; `mux_runtime.kvpool.client.PoolClient` is one."""

    def map_kv(self) -> Arena: ...
    def attach(self, name: str, nbytes: int) -> WeightArena: ...
    def seal(self, name: str, digest: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsHandle:
    """Where a model's weights come from and the arena all its hosts share."""

    model_dir: str
    arena: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """What an engine will need and can do, known before it touches memory or a device.

    `weight_bytes` is the size of the weight arena: reserve it before `open`.
    """

    geometry: KVGeometry
    weight_bytes: int
    max_model_len: int
    vocab: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first message of a host process."""

    host_id: str
    epoch: int
    pid: int
    phase: Phase


class EngineHost(Protocol):
    """One model's engine in one process. One call at a time; not safe for threads."""

    @property
    def geometry(self) -> KVGeometry: ...

    def open(self, pool: PoolHandle, weights: WeightsHandle, device: str) -> None:
        """Maps the pool, loads or maps weights, warms up. Touches no other host's rows."""
        ...

    def add(self, rid: str, token_ids: Sequence[int], sampling: Sampling, *, prompt_len: int,
            kv: KVHandoff | None = None, detach: bool = False) -> None:  # fmt: skip
        """Queues a request and adopts its rows. RequestRefused leaves them the caller's."""
        ...

    def step(self, grant: Grant) -> StepResult:
        """Runs at most what is granted; returns when the device is idle."""
        ...

    def abort(self, rid: str) -> KVHandoff | None:
        """Forgets a request; its rows are the caller's. None when it is not known."""
        ...

    def stats(self) -> HostStats: ...

    def close(self) -> None:
        """Ends device work and drops mappings; frees no rows."""
        ...
