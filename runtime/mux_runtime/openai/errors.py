"""Errors as OpenAI's clients expect them: a status and one JSON object.

Every message names subject, value, limit and fix, in that order where they exist.
"""

from typing import Final

import msgspec

from mux_core.errors import MuxError

STATE_HEADER: Final = "X-MuxServe-State"


class ApiError(MuxError):
    """An HTTP answer that is an error; `code` is stable and may be switched on.

    `state` is the closed reason for which a model cannot serve; clients see it as a header.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        state: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.state = state

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after_s)))
        if self.state is not None:
            headers[STATE_HEADER] = self.state
        return headers

    def body(self) -> bytes:
        """The JSON object of the answer, and of an error event inside a stream."""
        error = ErrorBody(message=str(self), type=self.kind, param=self.param, code=self.code)
        return msgspec.json.encode(ErrorEnvelope(error=error))


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """What stands at the top of an error answer."""

    error: ErrorBody


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request can never be served as it is."""
    return ApiError(message, status=400, kind="invalid_request_error", code=code, param=param)


def body_too_large(limit: int) -> ApiError:
    return ApiError(
        f"request body: larger than {limit} bytes; send a shorter prompt",
        status=413, kind="invalid_request_error", code="body_too_large",
    )  # fmt: skip


def model_not_found(name: str, known: tuple[str, ...]) -> ApiError:
    """404; lists what may be asked for."""
    names = ", ".join(known) if known else "none at present"
    return ApiError(
        f"model {name!r}: not served here; served models: {names}",
        status=404, kind="invalid_request_error", code="model_not_found", param="model",
    )  # fmt: skip


def overloaded(message: str, *, code: str, retry_after_s: float = 1.0) -> ApiError:
    """429: a bound is reached now; the same request may pass later."""
    return ApiError(message, status=429, kind="rate_limit_error", code=code,
                    retry_after_s=retry_after_s)  # fmt: skip


def unavailable(message: str, *, code: str, retry_after_s: float = 1.0,
                state: str | None = None) -> ApiError:  # fmt: skip
    """503: nothing can serve this now; the same request may pass later."""
    return ApiError(message, status=503, kind="server_error", code=code, state=state,
                    retry_after_s=retry_after_s)  # fmt: skip


def internal(message: str) -> ApiError:
    """500: our own bug; the message carries no detail, the log does."""
    return ApiError(message, status=500, kind="server_error", code="internal_error")
