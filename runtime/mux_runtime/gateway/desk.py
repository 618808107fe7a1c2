"""Gives each request an endpoint, or makes it wait until there is one.

`mux_core.routes.least_loaded` says which. One that could not be reached is left alone for a moment.
Waiting requests are released in the order in which they came, a few at a time.
"""

import asyncio
import bisect
import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from mux_core.routes import Endpoint, Route, RouteTable, least_loaded

Address = tuple[str, int]
Waiter = tuple[int, asyncio.Future[None]]
"""A request's place in the order of arrival, and what wakes it."""

RELEASE_STEP: Final = 32
"""Waiting requests let go at once, so that a unit that comes back is not flooded."""
_STEP_S: Final = 0.02
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class DeskFull(Exception):
    """As many requests of the model wait as may; `holding`: because no endpoint serves."""

    def __init__(self, limit: int, *, holding: bool) -> None:
        super().__init__(f"{limit} requests wait already")
        self.limit = limit
        self.holding = holding


class HoldExpired(Exception):
    """No endpoint served the model until the deadline."""


class RouteGone(Exception):
    """The model left the table while its request waited."""


def address_of(endpoint: Endpoint) -> Address:
    return (endpoint.host, endpoint.port)


class Desk:
    """All requests that have not got an answer's first byte, and the endpoints' load."""

    def __init__(self) -> None:
        self._table = RouteTable(namespace="")
        self._outstanding: Counter[tuple[Address, str]] = Counter()
        self._admitted: Counter[str] = Counter()
        self._waiting: defaultdict[str, list[Waiter]] = defaultdict(list)
        self._closed = False
        self._places = itertools.count()
        self._paused: dict[tuple[Address, str], float] = {}
        self._pauses: Counter[tuple[Address, str]] = Counter()

    def update(self, table: RouteTable) -> None:
        """Puts a new table in force; its endpoints are believed to serve."""
        self._table = table
        self._paused.clear()
        self._pauses.clear()
        for name in list(self._waiting):
            self._release(name)

    def send_away(self) -> None:
        """Ends all waiting, and all further waiting, as if its deadline had come."""
        self._closed = True
        for queue in self._waiting.values():
            for _, future in queue:
                if not future.done():
                    future.set_exception(TimeoutError())

    def held(self, name: str) -> int:
        """Requests of the model that wait for an endpoint."""
        return len(self._waiting.get(name, ()))

    @contextlib.contextmanager
    def admitted(self, name: str) -> Iterator[int]:
        """Counts the request as waiting for its first byte and gives it a place in the order.

        Raises DeskFull.
        """
        limit = self._table.max_queued_per_model
        if self._admitted[name] >= limit:
            route = self._table.route(name)
            raise DeskFull(limit, holding=route is None or not route.serving)
        self._admitted[name] += 1
        try:
            yield next(self._places)
        finally:
            self._admitted[name] -= 1
            if not self._admitted[name]:
                del self._admitted[name]

    async def endpoint(self, name: str, place: int, *, deadline: float,
                       avoid: Address | None = None) -> Endpoint:  # fmt: skip
        """The endpoint to ask now; waits for one until `deadline` (the event loop's clock).

        `avoid` is taken only if there is no other. Raises HoldExpired or RouteGone.
        """
        behind_others = self._is_behind(name, place)
        while True:
            route = self._table.route(name)
            if route is None:
                raise RouteGone(name)
            found = None if behind_others else self._pick(route, avoid)
            if found is not None:
                return found
            await self._wait(name, place, deadline)
            behind_others = False

    def must_wait(self, name: str, place: int, *, avoid: Address | None = None) -> bool:
        """Whether `endpoint` would wait if it were called now."""
        route = self._table.route(name)
        if route is None:
            return False
        return self._is_behind(name, place) or self._pick(route, avoid) is None

    def _is_behind(self, name: str, place: int) -> bool:
        """Whether an earlier request of the model still waits."""
        queue = self._waiting.get(name)
        return bool(queue and queue[0][0] < place)

    @contextlib.contextmanager
    def outstanding(self, endpoint: Endpoint, name: str) -> Iterator[None]:
        """Counts one request for the model as being served by `endpoint`."""
        key = (address_of(endpoint), name)
        self._outstanding[key] += 1
        try:
            yield
        finally:
            self._outstanding[key] -= 1
            if not self._outstanding[key]:
                del self._outstanding[key]

    def pause(self, endpoint: Endpoint, name: str) -> None:
        """Leaves `endpoint` alone for this model; longer each time in a row."""
        key = (address_of(endpoint), name)
        seconds = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._pauses[key], 10))
        loop = asyncio.get_running_loop()
        self._pauses[key] += 1
        self._paused[key] = loop.time() + seconds
        loop.call_later(seconds, self._resume, key)

    def proved(self, endpoint: Endpoint, name: str) -> None:
        """`endpoint` answered for this model."""
        key = (address_of(endpoint), name)
        self._pauses.pop(key, None)
        self._paused.pop(key, None)

    def _resume(self, key: tuple[Address, str]) -> None:
        # A later pause may have moved the end; its own timer will come.
        if self._paused.get(key, 0.0) <= asyncio.get_running_loop().time():
            self._paused.pop(key, None)
            self._release(key[1])

    def _pick(self, route: Route, avoid: Address | None) -> Endpoint | None:
        free = [endpoint for endpoint in route.endpoints
                if (address_of(endpoint), route.served_name) not in self._paused]  # fmt: skip
        others = [endpoint for endpoint in free if address_of(endpoint) != avoid]
        name = route.served_name
        return least_loaded(others or free, lambda e: self._outstanding[address_of(e), name])

    async def _wait(self, name: str, place: int, deadline: float) -> None:
        if self._closed:
            raise HoldExpired(name)
        waiter = (place, asyncio.get_running_loop().create_future())
        bisect.insort(self._waiting[name], waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter[1]
        except TimeoutError:
            raise HoldExpired(name) from None
        finally:
            self._withdraw(name, waiter)

    def _withdraw(self, name: str, waiter: Waiter) -> None:
        """Takes back a request that will not wait any longer; no trace of it stays."""
        queue = self._waiting.get(name, [])
        if waiter in queue:
            queue.remove(waiter)
        if not queue:
            self._waiting.pop(name, None)

    def _release(self, name: str) -> None:
        """Lets the next few waiting requests look again, if there is anything to see."""
        queue = self._waiting.get(name)
        route = self._table.route(name)
        if not queue or (route is not None and self._pick(route, None) is None):
            return
        released, queue[:] = queue[:RELEASE_STEP], queue[RELEASE_STEP:]
        for _, future in released:
            if not future.done():
                future.set_result(None)
        if queue:
            asyncio.get_running_loop().call_later(_STEP_S, self._release, name)
