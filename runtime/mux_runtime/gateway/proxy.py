"""One client request through the gateway: count, hold, ask a unit, pass its answer on.

Nothing of an answer is kept back and nothing in it is changed. A request is sent a second time
only while its client has not got a byte; one whose connection could not be made was never sent.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
from aiohttp import ClientError, web

from mux_core.reasons import Reason
from mux_core.routes import Endpoint, Route
from mux_runtime.gateway.book import RouteBook
from mux_runtime.gateway.desk import Address, Desk, DeskFull, HoldExpired, RouteGone, address_of
from mux_runtime.gateway.metrics import Cut, GatewayMetrics, HoldOutcome, Rejected
from mux_runtime.gateway.relay import EventSplitter
from mux_runtime.gateway.upstream import Answer, Lost, NotReached, NotServing, Units
from mux_runtime.openai import errors, requests
from mux_runtime.openai.errors import ApiError
from mux_runtime.openai.fields import decode_object
from mux_runtime.openai.hop import whole_report
from mux_runtime.openai.responses import event
from mux_runtime.openai.series import SloTargets
from mux_runtime.openai.streams import Streams

MAX_SENDS: Final = 2
"""A request and one retry."""
_PASSED_ON: Final = ("Content-Type", "Cache-Control", "Retry-After", "X-Accel-Buffering",
                     errors.STATE_HEADER)  # fmt: skip


class _Peek(msgspec.Struct):
    """All the gateway needs to know of a body; the unit checks the rest."""

    model: str


@dataclass(slots=True, kw_only=True)
class Visit:
    """One request while it is here. Times are the event loop's."""

    route: Route
    path: str
    body: bytes
    arrival: float
    place: int = 0
    sends: int = 0
    sent_at: float = 0.0
    held_s: float = 0.0
    first_byte_at: float | None = None
    tokens: int | None = None
    last: Address | None = None


class Proxy:
    """Forwards OpenAI requests to units."""

    def __init__(self, book: RouteBook, desk: Desk, units: Units,
                 metrics: GatewayMetrics) -> None:  # fmt: skip
        self._book = book
        self._desk = desk
        self._units = units
        self._metrics = metrics
        self.streams = Streams()

    async def forward(self, http: web.Request) -> web.StreamResponse:
        """Answers one POST. Raises ApiError for what the gateway itself refuses."""
        arrival = _now()
        body = await http.read()
        name = _model_of(body)
        route = self._known_route(name)
        visit = Visit(route=route, path=http.path, body=body, arrival=arrival)
        self._metrics.arrived(route)
        try:
            return await self._answered(http, visit)
        except ApiError as error:
            self._metrics.answered(route, error.status)
            self._judge(visit, failed=True, counts=error.status >= 500 or error.status == 429)
            raise
        except asyncio.CancelledError:
            self._metrics.model(route).cancelled += 1
            raise
        finally:
            self._metrics.left(route)

    def _known_route(self, name: str) -> Route:
        route = self._book.table.route(name)
        if route is not None:
            return route
        if not self._book.has_table:
            raise errors.unavailable("gateway: has no routes yet; retry shortly",
                                     code="no_routes")  # fmt: skip
        self._metrics.answered(None, 404)
        raise self._gone(name)

    async def _answered(self, http: web.Request, visit: Visit) -> web.StreamResponse:
        async with contextlib.AsyncExitStack() as stack:
            with self._admitted(visit):
                answer = await self._reach(visit, stack)
            self._metrics.answered(visit.route, answer.status)
            if answer.is_stream:
                return await self._stream(http, answer, visit)
            return self._whole(answer, visit)

    @contextlib.contextmanager
    def _admitted(self, visit: Visit) -> Iterator[None]:
        """The request's place in the queue of those without a first byte."""
        name = visit.route.served_name
        try:
            with self._desk.admitted(name) as visit.place:
                yield
        except DeskFull as full:
            reason = Rejected.HOLD_FULL if full.holding else Rejected.QUEUE_FULL
            self._metrics.rejected(visit.route, reason)
            raise errors.overloaded(
                f"model {name!r}: {full.limit} requests wait already, at most {full.limit} may; "
                "retry shortly", code=reason.value) from full  # fmt: skip

    async def _reach(self, visit: Visit, stack: contextlib.AsyncExitStack) -> Answer:
        """An answer from some endpoint; it stays open, and counted as load, until `stack` ends."""
        outcome = HoldOutcome.CANCELLED
        try:
            while True:
                endpoint = await self._endpoint(visit)
                answer = await self._ask(endpoint, visit, stack)
                if answer is not None:
                    outcome = HoldOutcome.SERVED
                    return answer
        except ApiError:
            outcome = HoldOutcome.EXPIRED
            raise
        finally:
            if visit.held_s:
                self._metrics.hold_ended(visit.route, outcome, visit.held_s)

    async def _ask(self, endpoint: Endpoint, visit: Visit,
                   stack: contextlib.AsyncExitStack) -> Answer | None:  # fmt: skip
        """The endpoint's answer, or None when another attempt may be made."""
        name = visit.route.served_name
        with contextlib.ExitStack() as load:
            load.enter_context(self._desk.outstanding(endpoint, name))
            visit.sent_at = _now()
            try:
                answer = await self._units.ask(endpoint, visit.path, visit.body,
                                               fresh=visit.sends > 0)  # fmt: skip
            except (NotReached, NotServing):
                self._desk.pause(endpoint, name)
                return None
            except Lost as lost:
                return self._lost(lost, endpoint, visit)
            self._desk.proved(endpoint, name)
            stack.enter_context(load.pop_all())
            stack.callback(answer.close)
            return answer

    def _lost(self, lost: Lost, endpoint: Endpoint, visit: Visit) -> Answer | None:
        """None while the request may be sent once more; then what the unit said, or ApiError."""
        self._desk.pause(endpoint, visit.route.served_name)
        visit.last = address_of(endpoint)
        visit.sends += 1
        if visit.sends < MAX_SENDS:
            return None
        if lost.answer is not None:
            return lost.answer
        raise errors.unavailable(f"{lost}, and was sent {MAX_SENDS} times; retry shortly",
                                 code="unit_lost") from lost  # fmt: skip

    async def _endpoint(self, visit: Visit) -> Endpoint:
        """The endpoint to ask; holds the request while there is none. Raises ApiError."""
        name, hold_s = visit.route.served_name, self._book.table.hold_timeout_s
        with self._holding(visit) as deadline:
            try:
                return await self._desk.endpoint(name, visit.place, deadline=deadline,
                                                 avoid=visit.last)  # fmt: skip
            except HoldExpired:
                raise self._expired(visit, hold_s) from None
            except RouteGone:
                raise self._gone(name) from None

    @contextlib.contextmanager
    def _holding(self, visit: Visit) -> Iterator[float]:
        """Measures the hold, if there is one; gives the time at which it must end.

        Only time spent held counts: a request that a unit lost late may still wait for another.
        """
        deadline = _now() + self._book.table.hold_timeout_s - visit.held_s
        if not self._desk.must_wait(visit.route.served_name, visit.place, avoid=visit.last):
            yield deadline
            return
        start = _now()
        self._metrics.held(visit.route, 1)
        try:
            yield deadline
        finally:
            self._metrics.held(visit.route, -1)
            visit.held_s += _now() - start

    def _expired(self, visit: Visit, hold_s: float) -> ApiError:
        route = self._book.table.route(visit.route.served_name)
        serving = route is not None and route.serving
        state = Reason.UNIT_UNREACHABLE if serving else (route.reason or None) if route else None
        self._metrics.rejected(visit.route,
                               Rejected.HOLD_EXPIRED if hold_s else Rejected.NO_UNIT)  # fmt: skip
        why = "its units do not answer" if serving else (route and route.reason) or "no unit"
        return errors.unavailable(
            f"model {visit.route.served_name!r}: no unit serves it ({why}), held for "
            f"{_now() - visit.arrival:.1f} s, at most {hold_s:g} s; retry later",
            code="no_ready_unit", retry_after_s=5.0, state=state)  # fmt: skip

    def _gone(self, name: str) -> ApiError:
        serving = (route.served_name for route in self._book.table.routes if route.serving)
        return errors.model_not_found(name, tuple(sorted(serving)))

    def _whole(self, answer: Answer, visit: Visit) -> web.Response:
        report = whole_report(answer.response.headers)
        visit.tokens = report.tokens
        if report.ttft_s is not None:
            self._first_byte(visit, visit.sent_at + report.ttft_s)
        failed = answer.status >= 500 or answer.status == 429
        self._judge(visit, failed=failed, counts=failed or answer.status < 400)
        return web.Response(status=answer.status, body=answer.body, headers=_headers(answer))

    async def _stream(self, http: web.Request, answer: Answer, visit: Visit) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=_headers(answer))
        events = EventSplitter()
        with self.streams.running():
            try:
                await response.prepare(http)
                async for data in _chunks(answer):
                    if whole := events.push(data):
                        self._first_byte(visit, _now())
                        await response.write(whole)
            except asyncio.CancelledError:
                if not self.streams.cutting:
                    raise
                return await self._cut(response, visit, Cut.DRAIN)
            except ConnectionResetError:  # the client went away
                self._metrics.model(visit.route).cancelled += 1
                return response
            if not events.ended:
                return await self._cut(response, visit, Cut.UNIT_LOST)
            visit.tokens = events.tokens
            self._judge(visit, failed=events.failed)
            with contextlib.suppress(ConnectionResetError):
                await response.write_eof()
            return response

    async def _cut(self, response: web.StreamResponse, visit: Visit,
                   reason: Cut) -> web.StreamResponse:  # fmt: skip
        """Ends a stream that cannot go on, so that its client can tell."""
        self._metrics.cut(visit.route, reason)
        self._judge(visit, failed=True)
        why = "the gateway ends" if reason is Cut.DRAIN else "its unit was lost"
        error = errors.unavailable(
            f"model {visit.route.served_name!r}: stream cut, {why}; send the request again",
            code="stream_cut")  # fmt: skip
        with contextlib.suppress(ConnectionResetError):
            await response.write(event(error.body()))
            await response.write_eof()
        return response

    def _first_byte(self, visit: Visit, at: float) -> None:
        if visit.first_byte_at is None:
            visit.first_byte_at = at
            route = visit.route
            self._metrics.first_hop.first_token(route.model, route.served_name,
                                                at - visit.arrival)  # fmt: skip

    def _judge(self, visit: Visit, *, failed: bool, counts: bool = True) -> None:
        """Counts the request against its SLO; the client's own mistakes do not count."""
        if not counts:
            return
        route, first = visit.route, visit.first_byte_at
        tpot = None
        if first is not None and visit.tokens is not None and visit.tokens > 1:
            tpot = (_now() - first) / (visit.tokens - 1)
        self._metrics.first_hop.ended(
            route.model, route.served_name,
            SloTargets(ttft_s=route.slo_ttft_s, tpot_s=route.slo_tpot_s),
            ttft_s=None if first is None else first - visit.arrival, tpot_s=tpot,
            failed=failed)  # fmt: skip


def _now() -> float:
    return asyncio.get_running_loop().time()


def _model_of(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Peek).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return requests.model_of(decode_object(body))  # says what is wrong with it


def _headers(answer: Answer) -> dict[str, str]:
    found = answer.response.headers
    return {name: found[name] for name in _PASSED_ON if name in found}


async def _chunks(answer: Answer) -> AsyncIterator[bytes]:
    """The bytes of a stream as they come; ends where the unit's connection ends."""
    with contextlib.suppress(ClientError):
        async for data in answer.response.content.iter_any():
            yield data
