"""One request on its way through the scheduler, and the stream its outputs leave by."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Self

from mux_core.engine import KVHandoff, Output
from mux_core.lifecycle import REQUEST, RequestEvent, RequestState, advance
from mux_runtime.generation import GenerationRequest


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """A request and what it has been given so far.

    `order` is its place in its member's queue, kept when it is set back. `computed`: tokens of
    this stay on the prefill host whose KV is written. `handoff` holds its rows between hosts.
    `granted`: when a step was first granted to it.
    """

    asked: GenerationRequest
    order: int
    arrived: float
    emitted: list[int] = field(default_factory=list)
    state: RequestState = RequestState.QUEUED
    handoff: KVHandoff | None = None
    computed: int = 0
    crashes: int = 0
    granted: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    outputs: asyncio.Queue[Output | BaseException] = field(default_factory=asyncio.Queue)

    @property
    def rid(self) -> str:
        return self.asked.rid

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and what was emitted: all a host needs to go on from here."""
        return (*self.asked.prompt, *self.emitted)

    @property
    def length(self) -> int:
        return len(self.asked.prompt) + len(self.emitted)

    @property
    def is_over(self) -> bool:
        return self.state in (RequestState.FINISHED, RequestState.FAILED, RequestState.CANCELLED)

    def step(self, event: RequestEvent) -> None:
        self.state = advance(REQUEST, self.state, event, role=f"request {self.rid}")

    def admit(self, now: float) -> None:
        """Its turn came: a step with it is granted. Set back later, its first grant stands."""
        self.step(RequestEvent.ADMITTED)
        self.granted = self.granted or now

    def emit(self, output: Output, now: float) -> None:
        """Takes new tokens: they stand, whatever becomes of the hosts."""
        if output.tokens:
            self.first_token = self.first_token or now
            self.last_token = now
            self.emitted.extend(output.tokens)
        self.outputs.put_nowait(output)

    def fail(self, error: BaseException) -> None:
        self.step(RequestEvent.FAILED)
        self.outputs.put_nowait(error)


class OutputStream(AsyncIterator[Output]):
    """The outputs of one request; closing it before the last one cancels the request."""

    def __init__(self, request: Request, cancel: Callable[[Request], None]) -> None:
        self._request = request
        self._cancel = cancel
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        if self._ended:
            raise StopAsyncIteration
        item = await self._request.outputs.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        self._ended = item.finish is not None
        return item

    async def aclose(self) -> None:
        self._ended = True
        if not self._request.is_over:
            self._cancel(self._request)
