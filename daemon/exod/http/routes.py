"""The routes of the HTTP API that do not generate: models, health, metrics, status, events.

Decides what each answers and when that is an error. `application` is the ASGI application of all routes; every
error has the shape that the path's clients read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exod.daemon_api.interface import DaemonCommands
from exod.daemon_api.resolve_names import check_model
from exod.errors import ExitCode, RequestError
from exod.http import openapi
from exod.http.body import BodyReader
from exod.http.dialects.anthropic import AnthropicAnswer, anthropic_error, read_anthropic
from exod.http.dialects.older_calls import chat_answer
from exod.http.dialects.openai_answers import (
    CompletionAnswer,
    error_object,
    models_object,
)
from exod.http.dialects.openai_requests import read_chat, read_completion
from exod.http.dialects.responses import Responses
from exod.http.event_streams import LiveStream, LogStream
from exod.http.exchange import (
    JsonResponse,
    client_of,
    error_response,
    error_shape,
    headers_of,
)
from exod.http.generation import Dialect, GenerationEndpoint, RequestSlots
from exod.http.metrics import CONTENT_TYPE, HttpMetrics
from exod.http.page_actions import ACTIONS, Actions
from exod.http.page_files import PageFiles
from exod.http.running import Running
from exod.http.text_routes import text_endpoints

_log = structlog.get_logger("http_api")

ENDPOINTS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/openapi.json",
    "/health",
    "/ready",
    "/metrics",
    "/api/status",
    "/api/events",
    "/api/live",
    *(f"/api/actions/{name}" for name in ACTIONS),
    "/",
)


def application(
    commands: DaemonCommands,
    metrics: HttpMetrics,
    bodies: BodyReader,
    generations: RequestSlots,
    followers: RequestSlots,
    leaving: asyncio.Event,
    last_call: asyncio.Event,
    *,
    keyed: bool,
    actions: bool,
    degraded_ms: float,
) -> Starlette:
    """All routes. `leaving` ends event streams, `last_call` ends generations; `keyed`: every client has a key;
    `actions` lets the page act.
    """
    running = Running(keyed=keyed)
    responses = Responses()
    dialects = {
        "/v1/chat/completions": Dialect(read_chat, chat_answer),
        "/v1/completions": Dialect(read_completion, CompletionAnswer),
        "/v1/responses": Dialect(responses.read, responses.answer),
        "/v1/messages": Dialect(read_anthropic, AnthropicAnswer, anthropic_error),
    }
    generating = {
        path: GenerationEndpoint(commands, metrics, bodies, generations, last_call, running, dialect)
        for path, dialect in dialects.items()
    }
    asks = _Asks(commands, metrics, running)
    routes = [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in generating.items()),
        *(Route(path, one, methods=["POST"]) for path, one in text_endpoints(commands, bodies).items()),
        Route("/v1/embeddings", asks.embeddings, methods=["POST"]),
        Route("/v1/cancel/{name}", asks.cancel, methods=["POST"]),
        Route("/openapi.json", asks.openapi),
        Route("/v1/models", asks.models),
        Route("/v1/models/{name:path}", asks.model),
        Route("/health", asks.health),
        Route("/ready", asks.ready),
        Route("/metrics", asks.metrics_text),
        Route("/api/status", asks.status),
        Route("/api/events", LogStream(commands, followers, leaving), methods=["GET"]),
        Route(
            "/api/live",
            LiveStream(commands, followers, leaving, running.lines, actions=actions, degraded_ms=degraded_ms),
            methods=["GET"],
        ),
        *Actions(commands, bodies, allowed=actions).routes(),
        *PageFiles().routes(),
    ]
    handlers: dict[type[Exception] | int, Callable[[Request, Exception], Awaitable[Response]]] = {
        HTTPException: _not_served,
        RequestError: _refused,
        Exception: _broken,
    }
    served = Starlette(routes=routes, exception_handlers=handlers)
    served.router.redirect_slashes = False  # a slash at the end of a path was removed before it came here
    return served


class _Asks:
    """The endpoints that answer at once."""

    def __init__(self, commands: DaemonCommands, metrics: HttpMetrics, running: Running) -> None:
        self._commands = commands
        self._running = running
        self._metrics = metrics
        self._started_at = int(time.time())

    async def models(self, request: Request) -> Response:
        return JsonResponse(models_object(self._commands.models(), self._started_at))

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not self._commands.models():
            raise RequestError("model_not_found", f"the model '{name[:200]}' is not loaded; served: none")
        return JsonResponse(models_object([check_model(name, self._commands)], self._started_at)["data"][0])

    async def embeddings(self, request: Request) -> Response:
        text = "embeddings are not served: exod runs models that generate text"
        raise RequestError("embeddings_not_supported", text)

    async def cancel(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not self._running.cancel(client_of(request.scope, headers_of(request.scope)), name):
            raise RequestError("not_found", f"no request '{name[:100]}' is under way on this node")
        return JsonResponse({"id": name, "cancelled": True})

    async def openapi(self, request: Request) -> Response:
        return Response(openapi.encoded(), media_type="application/json")

    async def health(self, request: Request) -> Response:
        """This process runs and answers. `/ready` says whether it can serve."""
        return JsonResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        readiness = self._commands.ready()
        if readiness.ready:
            warning = {"code": readiness.code, "reason": readiness.text} if readiness.code else {}
            return JsonResponse({"ready": True, **warning})
        error = RequestError(readiness.code or "not_ready", readiness.text, ExitCode.DEGRADED)
        headers = error_response(error).headers
        body = {"ready": False, "code": error.code, "reason": error.text, **error_object(error)}
        return JsonResponse(body, 503, {"retry-after": headers.get("retry-after", "2")})

    async def metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def status(self, request: Request) -> Response:
        return JsonResponse(self._commands.status())


# --- errors, in OpenAI's shape whatever went wrong ----------------------------------------------------------


async def _not_served(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:100]
    if error.status_code == 405:
        takes = (error.headers or {}).get("Allow", "another method")
        refusal = RequestError("method_not_allowed", f"{request.method} {path}: this endpoint takes {takes}")
    elif error.status_code == 404:
        refusal = RequestError("not_found", f"{path}: there is no such endpoint; there are: {', '.join(ENDPOINTS)}")
    else:
        refusal = RequestError("invalid_request", error.detail)
    response = error_response(refusal, error_shape(path))
    if error.headers:
        response.headers.update(error.headers)
    return response


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error, error_shape(request.scope["path"]))


async def _broken(request: Request, error: Exception) -> Response:
    """A fault of this daemon. The client gets one line; Starlette raises it on, so the log has the traceback."""
    text = f"an internal error of exod ({type(error).__name__}); its log has the details"
    broken = RequestError("internal_error", text, ExitCode.INTERNAL)
    return error_response(broken, error_shape(request.scope["path"]))
