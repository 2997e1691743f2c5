"""`POST /api/actions/…`: what the page can do to the cluster: load, unload, drain, renegotiate, pull, pause.

Decides what a body may hold; the daemon does the rest, and answers with one line for people. Where
`api.commands = false`, every action is refused with the command that does the same from a terminal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exod.daemon_api.field_errors import field_problem
from exod.daemon_api.interface import DaemonCommands
from exod.daemon_api.shapes import Done
from exod.errors import ExitCode, RequestError
from exod.http.body import BodyReader
from exod.http.exchange import JsonResponse, headers_of
from exoengine.decoding import DecodingError, WrongShapeError, from_json

ACTIONS: Final = {
    "load": "exoctl engine load MODEL",
    "unload": "exoctl engine unload",
    "drain": "exoctl engine drain",
    "renegotiate": "exoctl mesh renegotiate",
    "pull": "exoctl model pull MODEL",
    "pause": "exoctl model pause MODEL",
}
"""Each action, and the command that does the same."""


class _ActionBody(msgspec.Struct, forbid_unknown_fields=True):
    model: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    """For `load`, `pull` and `pause`: a folder, a Hugging Face repo id, for `load` also the embedded model."""
    everywhere: bool = False
    """Only for `pull`: to every node, also to those that host no layers."""


class Actions:
    """`allowed` is the config's `api.commands`."""

    def __init__(self, commands: DaemonCommands, bodies: BodyReader, *, allowed: bool) -> None:
        self._commands = commands
        self._bodies = bodies
        self._allowed = allowed

    def routes(self) -> list[Route]:
        return [Route(f"/api/actions/{name}", self._endpoint(name), methods=["POST"]) for name in ACTIONS]

    def _endpoint(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if not self._allowed:
                text = f"actions over HTTP are off (api.commands = false); from a terminal: {ACTIONS[name]}"
                raise RequestError("commands_off", text)
            body = await self._bodies.read(headers_of(request.scope), request.receive, _body)
            done = await self._act(name, body)
            return JsonResponse({"text": done.text})

        return endpoint

    async def _act(self, name: str, body: _ActionBody) -> Done:
        match name:
            case "load":
                return await self._load(_model_of(body))
            case "pull":
                return await self._commands.model_pull(_model_of(body), body.everywhere)
            case "pause":
                return await self._commands.model_pause(_model_of(body))
            case "unload":
                return await self._commands.engine_unload()
            case "drain":
                return await self._commands.engine_drain()
        return await self._commands.renegotiate("asked for on the page")

    async def _load(self, model: str) -> Done:
        """A model that cannot be loaded is a wrong value of the field, not a fault of exod's."""
        try:
            return await self._commands.engine_load(model)
        except RequestError as error:
            if error.exit_code is not ExitCode.INTERNAL or error.code == "internal_error":
                raise
            raise RequestError(error.code, f"model: {error.text}", ExitCode.USAGE) from None


def _model_of(body: _ActionBody) -> str:
    if not body.model.strip():
        raise RequestError("invalid_value", "model: is missing: a folder or a repository id such as OWNER/NAME")
    return body.model


def _body(data: bytes) -> _ActionBody:
    try:
        return from_json(data or b"{}", _ActionBody)
    except WrongShapeError as error:
        field, problem = field_problem(error.cause)
        raise RequestError("invalid_value", f"{field or 'the body'}: {problem}") from None
    except DecodingError as error:
        raise RequestError("invalid_json", f"the body: {error}") from None
