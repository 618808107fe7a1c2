"""The door to the units: sends a request to an endpoint and says what came of it.

A connection that was kept open may be dead by the time it is used, so a second attempt always
opens a new one.
"""

from typing import Final

import msgspec
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    TCPConnector,
)

from mux_core.errors import PeerError
from mux_core.routes import Endpoint
from mux_runtime.openai.errors import ErrorEnvelope

_CONNECT_S: Final = 2.0
_NOT_SERVING: Final = frozenset({"model_not_ready", "model_not_found"})
_LOST: Final = frozenset({"engine_lost"})


class NotReached(PeerError):
    """No connection: the unit has not seen the request."""


class Lost(PeerError):
    """The unit took the request and lost it before the client got a byte of the answer.

    `answer` is what it said, if the connection held that long.
    """

    def __init__(self, message: str, answer: "Answer | None" = None) -> None:
        super().__init__(message)
        self.answer = answer


class NotServing(PeerError):
    """The unit does not serve this model now; the table is ahead of it or behind."""


class Answer:
    """What a unit answers: `body` is there unless it is a stream of events."""

    def __init__(self, response: ClientResponse, body: bytes | None) -> None:
        self.response = response
        self.body = body

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def is_stream(self) -> bool:
        return self.body is None

    def close(self) -> None:
        """Ends the exchange at once; the unit sees the client going away."""
        self.response.close()


class Units:
    """HTTP sessions to all units; to be made inside a running event loop."""

    def __init__(self) -> None:
        timeout = ClientTimeout(total=None, sock_connect=_CONNECT_S)
        self._kept = ClientSession(timeout=timeout, auto_decompress=False,
                                   connector=TCPConnector(limit=0))  # fmt: skip
        self._fresh = ClientSession(timeout=timeout, auto_decompress=False,
                                    connector=TCPConnector(limit=0, force_close=True))  # fmt: skip

    async def close(self) -> None:
        await self._kept.close()
        await self._fresh.close()

    async def ask(self, endpoint: Endpoint, path: str, body: bytes, *, fresh: bool) -> Answer:
        """Raises NotReached, NotServing or Lost; any other error answer is an answer."""
        session = self._fresh if fresh else self._kept
        url = f"http://{endpoint.host}:{endpoint.port}{path}"
        try:
            response = await session.post(
                url, data=body, headers={"Content-Type": "application/json"}
            )
        except (ClientConnectorError, ConnectionTimeoutError) as error:
            raise NotReached(f"unit {endpoint.unit}: cannot connect ({error})") from error
        except (ClientError, OSError) as error:
            raise Lost(f"unit {endpoint.unit}: connection lost ({error})") from error  # fmt: skip
        try:
            return await self._answer(endpoint, response)
        except BaseException:
            response.close()
            raise

    async def _answer(self, endpoint: Endpoint, response: ClientResponse) -> Answer:
        if response.content_type == "text/event-stream":
            return Answer(response, None)
        try:
            body = await response.read()
        except (ClientError, OSError) as error:
            raise Lost(f"unit {endpoint.unit}: answer broke off ({error})") from error
        answer = Answer(response, body)
        code = _code(body) if response.status in (404, 503) else None
        if code in _NOT_SERVING:
            raise NotServing(f"unit {endpoint.unit}: does not serve the model now")
        if code in _LOST:
            raise Lost(f"unit {endpoint.unit}: lost the request", answer)
        return answer


def _code(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=ErrorEnvelope).error.code
    except msgspec.DecodeError:
        return None
