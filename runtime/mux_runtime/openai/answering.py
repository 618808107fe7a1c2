"""aiohttp answers that both HTTP processes give: JSON bodies and OpenAI's errors."""

import logging

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from mux_core.errors import CapacityError, PeerError, SpecError
from mux_runtime.generation import ModelNotServing
from mux_runtime.openai import errors
from mux_runtime.openai.errors import ApiError

_log = logging.getLogger(__name__)


def json_response(payload: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(payload), content_type="application/json")


def error_response(error: ApiError) -> web.Response:
    return web.Response(status=error.status, body=error.body(), headers=error.headers,
                        content_type="application/json")  # fmt: skip


def error_answers(max_body_bytes: int) -> Middleware:
    """The middleware by which every failure leaves as OpenAI's error object."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            return error_response(errors.body_too_large(max_body_bytes))
        except web.HTTPException as error:
            return error_response(_http_error(request, error))
        except Exception as error:
            return error_response(api_error(error))

    return answer


def _http_error(http: web.Request, error: web.HTTPException) -> ApiError:
    """aiohttp's own refusals: unknown path, wrong method."""
    hint = "see /v1/models, /v1/completions, /v1/chat/completions"
    return ApiError(f"{http.method} {http.path}: {error.reason}; {hint}", status=error.status,
                    kind="invalid_request_error",
                    code="unknown_url" if error.status == 404 else None)  # fmt: skip


def api_error(error: Exception) -> ApiError:
    """What a failure of any layer is called over HTTP."""
    match error:
        case ApiError():
            return error
        case ModelNotServing():
            return errors.unavailable(f"{error}; retry shortly", code="model_not_ready",
                                      retry_after_s=error.retry_after_s,
                                      state=error.reason)  # fmt: skip
        case CapacityError():
            return errors.overloaded(str(error), code="queue_full")
        case SpecError():
            return errors.invalid(str(error), code="request_refused")
        case PeerError():
            return errors.unavailable(str(error), code="engine_lost",
                                      retry_after_s=error.retry_after_s)  # fmt: skip
        case _:
            _log.error("request failed", exc_info=error)
            return errors.internal("the unit failed on this request; its log has the details")
