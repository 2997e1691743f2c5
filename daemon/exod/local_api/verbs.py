"""The verbs of the control socket: their arguments, their bounds, and the daemon's command behind each.

Decides which arguments are allowed and what a typed name stands for; never what a command does.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any, Final, TypeVar

import msgspec

from exod.daemon_api import stream_keepalive
from exod.daemon_api.field_errors import field_problem
from exod.daemon_api.interface import DEFAULT_MAX_TOKENS, DEFAULT_MODEL, MAX_TOKENS_LIMIT, DaemonCommands
from exod.daemon_api.resolve_names import check_model, find_path, find_peer
from exod.daemon_api.self_fault import MAX_DEBUG_S, MAX_DELAY_MS, SelfFault
from exod.daemon_api.shapes import flat_event
from exod.daemon_api.stream_keepalive import paced
from exod.errors import RequestError
from exod.local_api.protocol import LocalRequest
from exod.model import NodeId
from exoengine.decoding import DecodingError, WrongShapeError, from_json
from exoengine.protocol import ChatMessage, GenerationRequest, Sampling

MAX_PINGS: Final = 100_000
MAX_HISTORY: Final = 10_000
MAX_INVITED_S: Final = 7 * 86_400.0
"""A door that stays open for longer is no invitation."""

Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_PINGS)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_HISTORY)]
DebugSeconds = Annotated[float, msgspec.Meta(gt=0, le=MAX_DEBUG_S)]


class NoArgs(msgspec.Struct, forbid_unknown_fields=True):
    pass


class PeerArgs(msgspec.Struct, forbid_unknown_fields=True):
    peer: str | None = None


class NodeArgs(msgspec.Struct, forbid_unknown_fields=True):
    peer: str


class InviteArgs(msgspec.Struct, forbid_unknown_fields=True):
    for_s: Annotated[float, msgspec.Meta(ge=1, le=MAX_INVITED_S)]
    once: bool = False


class HistoryArgs(msgspec.Struct, forbid_unknown_fields=True):
    peer: str | None = None
    limit: Limit = 100


class PingArgs(msgspec.Struct, forbid_unknown_fields=True):
    peer: str
    via: str | None = None
    count: Count = 5


class RenegotiateArgs(msgspec.Struct, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=200)] = "asked for by a person"


class LoadArgs(msgspec.Struct, forbid_unknown_fields=True):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class PullArgs(msgspec.Struct, forbid_unknown_fields=True):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    everywhere: bool = False


class EventsArgs(msgspec.Struct, forbid_unknown_fields=True):
    since: float | None = None
    follow: bool = False


class GenerateArgs(msgspec.Struct, forbid_unknown_fields=True):
    messages: Annotated[tuple[ChatMessage, ...], msgspec.Meta(min_length=1)]
    model: str = DEFAULT_MODEL
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS_LIMIT)] = DEFAULT_MAX_TOKENS
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class FaultArgs(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    for_s: DebugSeconds
    drop: bool = False
    delay_ms: Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY_MS)] = 0.0


class SelfFaultArgs(msgspec.Struct, forbid_unknown_fields=True):
    kind: SelfFault
    for_s: DebugSeconds


class PinArgs(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    for_s: DebugSeconds


Args = TypeVar("Args", bound=msgspec.Struct)


class Verbs:
    """Two tables: verbs with one result, and verbs that stream."""

    def __init__(self, commands: DaemonCommands, *, debug_enabled: bool) -> None:
        self._commands = commands
        self._debug_enabled = debug_enabled
        self._results: dict[str, Callable[[LocalRequest], Awaitable[Any]]] = {
            "status": self._snapshot(commands.status),
            "mesh": self._snapshot(commands.mesh),
            "jaccl": self._snapshot(commands.jaccl),
            "engine": self._snapshot(commands.engine),
            "cluster": self._snapshot(commands.cluster),
            "ready": self._snapshot(commands.ready),
            "models": self._snapshot(commands.models),
            "links": self._links,
            "links_history": self._links_history,
            "netcheck": self._command(commands.netcheck),
            "preflight": self._command(commands.preflight),
            "doctor": self._command(commands.doctor),
            "renegotiate": self._renegotiate,
            "cluster_forget": self._cluster_forget,
            "cluster_invite": self._cluster_invite,
            "cluster_rotate": self._command(commands.cluster_rotate),
            "cluster_remove": self._cluster_remove,
            "engine_load": self._engine_load,
            "engine_unload": self._command(commands.engine_unload),
            "engine_drain": self._command(commands.engine_drain),
            "model_pull": self._model_pull,
            "model_pause": self._model_pause,
            "debug_fault": self._debug_fault,
            "debug_self_fault": self._debug_self_fault,
            "debug_pin": self._debug_pin,
        }
        self._streams: dict[str, Callable[[LocalRequest], AsyncGenerator[Any, None]]] = {
            "ping": self._ping,
            "events": self._events,
            "generate": self._generate,
        }

    def stream(self, request: LocalRequest) -> AsyncGenerator[Any, None] | None:
        """The stream that answers `request`, or None where its verb has one result. An item of None says only
        that the stream lives. Raises RequestError.
        """
        if request.verb in self._streams:
            return self._streams[request.verb](request)
        return None

    async def result(self, request: LocalRequest) -> Any:
        """The one result that answers `request`. Raises RequestError."""
        verb = self._results.get(request.verb)
        if verb is None:
            known = ", ".join(sorted((*self._results, *self._streams)))
            raise RequestError("unknown_verb", f"there is no verb '{request.verb[:100]}'; there are: {known}")
        return await verb(request)

    # --- verbs without arguments ---

    def _snapshot(self, command: Callable[[], Any]) -> Callable[[LocalRequest], Awaitable[Any]]:
        async def answer(request: LocalRequest) -> Any:
            _args(request, NoArgs)
            return command()

        return answer

    def _command(self, command: Callable[[], Awaitable[Any]]) -> Callable[[LocalRequest], Awaitable[Any]]:
        async def answer(request: LocalRequest) -> Any:
            _args(request, NoArgs)
            return await command()

        return answer

    # --- verbs with one result ---

    async def _links(self, request: LocalRequest) -> Any:
        return self._commands.links(self._peer(_args(request, PeerArgs).peer))

    async def _links_history(self, request: LocalRequest) -> Any:
        args = _args(request, HistoryArgs)
        return self._commands.links_history(self._peer(args.peer), args.limit)

    async def _cluster_forget(self, request: LocalRequest) -> Any:
        args = _args(request, NodeArgs)
        return await self._commands.cluster_forget(find_peer(args.peer, self._commands.status()))

    async def _cluster_invite(self, request: LocalRequest) -> Any:
        args = _args(request, InviteArgs)
        return self._commands.cluster_invite(args.for_s, args.once)

    async def _cluster_remove(self, request: LocalRequest) -> Any:
        args = _args(request, NodeArgs)
        return await self._commands.cluster_remove(find_peer(args.peer, self._commands.status()))

    async def _renegotiate(self, request: LocalRequest) -> Any:
        return await self._commands.renegotiate(_args(request, RenegotiateArgs).reason)

    async def _engine_load(self, request: LocalRequest) -> Any:
        return await self._commands.engine_load(_args(request, LoadArgs).model)

    async def _model_pull(self, request: LocalRequest) -> Any:
        args = _args(request, PullArgs)
        return await self._commands.model_pull(args.model, args.everywhere)

    async def _model_pause(self, request: LocalRequest) -> Any:
        return await self._commands.model_pause(_args(request, LoadArgs).model)

    async def _debug_fault(self, request: LocalRequest) -> Any:
        self._require_debug()
        args = _args(request, FaultArgs)
        if args.drop == (args.delay_ms > 0):
            raise RequestError("invalid_value", "a fault is either drop, or a delay of more than 0 ms")
        path = find_path(args.path, self._commands.links(None))
        return await self._commands.debug_fault(path, args.drop, args.delay_ms, args.for_s)

    async def _debug_self_fault(self, request: LocalRequest) -> Any:
        self._require_debug()
        args = _args(request, SelfFaultArgs)
        return await self._commands.debug_self_fault(args.kind, args.for_s)

    async def _debug_pin(self, request: LocalRequest) -> Any:
        self._require_debug()
        args = _args(request, PinArgs)
        return await self._commands.debug_pin(find_path(args.path, self._commands.links(None)), args.for_s)

    # --- verbs that stream ---

    def _ping(self, request: LocalRequest) -> AsyncGenerator[Any, None]:
        args = _args(request, PingArgs)
        peer = find_peer(args.peer, self._commands.status())
        path = find_path(args.via, self._commands.links(peer)) if args.via is not None else None
        return paced(self._commands.ping(peer, path, args.count), stream_keepalive.KEEP_ALIVE_S)

    async def _events(self, request: LocalRequest) -> AsyncGenerator[Any, None]:
        args = _args(request, EventsArgs)
        events = self._commands.events(args.since, args.follow)
        async with aclosing(paced(events, stream_keepalive.KEEP_ALIVE_S)) as items:
            async for event in items:
                yield None if event is None else flat_event(event)

    def _generate(self, request: LocalRequest) -> AsyncGenerator[Any, None]:
        args = _args(request, GenerateArgs)
        check_model(args.model, self._commands)
        seed = args.seed if args.seed is not None else secrets.randbelow(2**32)
        return self._commands.generate(
            GenerationRequest(
                request_id=f"chat-{secrets.token_hex(12)}",
                max_tokens=args.max_tokens,
                messages=args.messages,
                sampling=Sampling(temperature=args.temperature, top_p=args.top_p, seed=seed),
            )
        )

    # --- what the verbs share ---

    def _peer(self, text: str | None) -> NodeId | None:
        return None if text is None else find_peer(text, self._commands.status())

    def _require_debug(self) -> None:
        if not self._debug_enabled:
            raise RequestError(
                "debug_disabled",
                "debug commands are off: set [debug] enabled = true in the config and restart exod",
            )


def _args(request: LocalRequest, shape: type[Args]) -> Args:
    try:
        return from_json(request.args, shape)
    except WrongShapeError as error:
        field, problem = field_problem(error.cause)
        raise RequestError("invalid_value", f"{request.verb}: {field or 'args'}: {problem}") from None
    except DecodingError as error:
        raise RequestError("invalid_json", f"{request.verb}: args: {error}") from None
