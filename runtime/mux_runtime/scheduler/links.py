"""What the scheduler needs of an engine host and of whoever starts it; both are protocols.

Calls go one at a time per host (`mux_runtime.engines.host` has the rules). `EngineFault` from any
of them means that the host is gone or not to be trusted any more.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mux_core.engine import Grant, KVHandoff, Phase, Sampling, StepResult
from mux_runtime.engines.host import EngineDescription


class Host(Protocol):
    """A started engine host. `lost` is set when its process is gone or is to be ended."""

    @property
    def lost(self) -> asyncio.Event: ...

    @property
    def pid(self) -> int: ...

    @property
    def sms(self) -> int:
        """SMs that its process sees, once it is open; 0 where there is no GPU."""
        ...

    @property
    def ending(self) -> str:
        """How its process ended, for people; empty while it has not."""
        ...

    async def describe(self) -> EngineDescription: ...

    async def open(self) -> EngineDescription: ...

    async def add(self, rid: str, token_ids: Sequence[int], sampling: Sampling, *, prompt_len: int,
                  kv: KVHandoff | None = None, detach: bool = False) -> None: ...  # fmt: skip

    async def step(self, grant: Grant) -> StepResult: ...

    async def abort(self, rid: str) -> KVHandoff | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOrder:
    """One life of one engine host: a new epoch for every start."""

    model: str
    phase: Phase
    epoch: int
    percent: int


class HostStarter(Protocol):
    """Starts and ends engine hosts, one process each."""

    async def start(self, order: HostOrder) -> Host:
        """Answers when the host has said hello. SpecError: never will; PeerError: try again."""
        ...

    async def end(self, order: HostOrder) -> None:
        """Returns when that process is gone, however it was; its writes are then over."""
        ...

    async def forget(self, model: str) -> None:
        """Drops what outlives a model's hosts: its weights."""
        ...
