"""What a person or a client can ask of a running daemon: the only interface between the daemon and its shells.

`app.py` implements `DaemonCommands`; `local_api/server.py` and `http/server.py` call it and know nothing else of
the daemon. The shells resolve what a person typed (a peer's name, an interface) before they call, check bounds, and
turn `RequestError` into their own error shapes. This file decides nothing.

Snapshots are plain methods: they read the core's state and never wait. What takes time, or changes something, is
awaited. Streams are async generators: closing one (`aclose`, or cancelling the task that iterates) ends what it
stands for, and must be safe at any point.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final, Literal, Protocol

import msgspec

from exod.core.cluster.jaccl import JacclHostfile
from exod.daemon_api.counters import MetricsSnapshot
from exod.daemon_api.self_fault import SelfFault
from exod.daemon_api.shapes import (
    ClusterReport,
    DoctorReport,
    Done,
    EngineReport,
    Invited,
    LinkHistoryReport,
    LinksReport,
    MeshReport,
    NetcheckReport,
    PathTrace,
    PingReply,
    PreflightReport,
    Readiness,
    StatusReport,
)
from exod.model import Event, NodeId, PathId
from exoengine.protocol import CallDelta, GenerationRequest, LikelyToken, TextAnswered, TextAsked

DEFAULT_MODEL: Final = "default"
"""What a client may say for whichever model is loaded."""

DEFAULT_MAX_TOKENS: Final = 32_768
"""Where a client names no limit: an answer ends because it is finished, not because nobody asked for more. The
engine ends it with `length` where the model's context ends before."""

MAX_TOKENS_LIMIT: Final = 10_000_000
"""Beyond any context there is; a larger wish is a mistake."""


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """How many of the prompt's tokens were in the KV cache already."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    reasoning_tokens: int = 0


class TextDelta(msgspec.Struct, frozen=True, tag="text"):
    """One token. `index` starts at 0 and never skips or repeats, whatever happened to the cluster meanwhile.

    `text` may be empty: inside a multi-byte character, or while it could still be the start of a stop string.
    """

    index: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[LikelyToken, ...] = ()
    token: int = -1
    piece: bytes = b""
    """The token's own bytes; empty where it belongs to no text."""
    head: bytes = b""
    """With the first token of a prompt that is scored: the bytes of the token before it."""
    reasoning: str = ""
    """What the token adds to what the model thinks."""
    calls: tuple[CallDelta, ...] = ()


class KeepAlive(msgspec.Struct, frozen=True, tag="keep_alive"):
    """The stream is open and has no token yet: queued, prefilling, or recovering. `text` says which."""

    text: str = ""


class GenerationEnd(msgspec.Struct, frozen=True, tag="end"):
    """Last in every stream that was not cut short by a RequestError. `text` is what had been held back."""

    finish_reason: Literal["stop", "length", "cancelled"]
    usage: Usage
    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    stop_string: str = ""
    """Which one ended the answer, if one did."""


GenerationDelta = TextDelta | KeepAlive | GenerationEnd


class DaemonCommands(Protocol):
    """Any method may raise RequestError: its `code` is stable and its text is for people.

    Codes that the shells know by name (others are passed on as they are, HTTP answers them with 500):
    `not_ready`, `queue_full`, `recovery_failed` (503), `too_slow` (503), `step_failed` (503),
    `unavailable` (503), `context_length_exceeded`, `invalid_value` (400), `model_not_found` (404), `cancelled`.
    """

    # --- snapshots ---

    def status(self) -> StatusReport: ...

    def links(self, peer: NodeId | None) -> LinksReport:
        """All links, or the one with `peer`."""
        ...

    def links_history(self, peer: NodeId | None, limit: int) -> LinkHistoryReport:
        """The newest `limit` decisions, oldest first."""
        ...

    def rtt_traces(self) -> tuple[PathTrace, ...]:
        """The RTT of every path over the last hour."""
        ...

    def mesh(self) -> MeshReport: ...

    def jaccl(self) -> JacclHostfile:
        """MLX's hostfile for JACCL over the plan's ranks. RequestError `not_cabled` where there is none."""
        ...

    def engine(self) -> EngineReport: ...

    def cluster(self) -> ClusterReport: ...

    def ready(self) -> Readiness:
        """Would a generation be served now?"""
        ...

    def models(self) -> list[str]:
        """The names under which requests are served now, none of them a path; `default` and the names of
        `full_model` are understood by the shells.
        """
        ...

    def full_model(self) -> str:
        """What the model was loaded as: a folder, a repository id, an embedded model; empty where none is."""
        ...

    def metrics(self) -> MetricsSnapshot: ...

    # --- commands ---

    async def netcheck(self) -> NetcheckReport: ...

    async def preflight(self) -> PreflightReport:
        """Runs every check now."""
        ...

    async def doctor(self) -> DoctorReport:
        """What only the daemon can see; `exoctl` adds what it finds from outside."""
        ...

    async def renegotiate(self, reason: str) -> Done:
        """Asks the coordinator for a new plan; returns when the wish is on its way."""
        ...

    async def cluster_forget(self, peer: NodeId) -> Done:
        """This node forgets another that is down. RequestError `node_up` where it is not."""
        ...

    def cluster_invite(self, for_s: float, once: bool) -> Invited:
        """A word by which another node is given the cluster's key here. RequestError `too_many`."""
        ...

    async def cluster_rotate(self) -> Done:
        """A new cluster key; returns when every member that is connected holds it, or some seconds later."""
        ...

    async def cluster_remove(self, node: NodeId) -> Done:
        """A new cluster key that this node is not given."""
        ...

    async def engine_load(self, model: str) -> Done:
        """A folder, a Hugging Face repo id, or the embedded model. Returns when loading has begun."""
        ...

    async def engine_unload(self) -> Done: ...

    async def engine_drain(self) -> Done:
        """Admits no more requests; returns when the running ones have ended."""
        ...

    async def model_pull(self, model: str, everywhere: bool) -> Done:
        """Nodes fetch a repository, or a folder of this host: those that host ranks, or all. Returns at once; the
        status tells how far each is.
        """
        ...

    async def model_pause(self, model: str) -> Done:
        """All nodes stop fetching it, and keep what they have."""
        ...

    async def debug_fault(self, path: PathId, drop: bool, delay_ms: float, for_s: float) -> Done:
        """Only called where the config enables debugging."""
        ...

    async def debug_self_fault(self, kind: SelfFault, for_s: float) -> Done:
        """Only called where the config enables debugging. Raises RequestError where it cannot be done here."""
        ...

    async def debug_pin(self, path: PathId, for_s: float) -> Done:
        """Only called where the config enables debugging."""
        ...

    # --- streams ---

    def ping(self, peer: NodeId, path: PathId | None, count: int) -> AsyncGenerator[PingReply, None]:
        """`count` probes, 200 ms apart, over `path`, or over whichever is selected at each probe."""
        ...

    def events(self, since: float | None, follow: bool) -> AsyncGenerator[Event, None]:
        """Events of the bounded log later than `since` (Unix seconds; None: all), then, with `follow`, new
        ones for ever. A follower that reads too slowly loses the oldest, never the daemon's time.
        """
        ...

    async def text(self, asked: TextAsked) -> TextAnswered:
        """Tokens of a text or of a request's prompt, or the text of tokens, from the loaded model's tokenizer."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """The deltas of one generation, wherever in the cluster it runs; the last one is GenerationEnd.

        `max_tokens` is a bound, not a wish: where the context ends before it, the answer ends with `length`;
        only a prompt that does not fit raises. What cannot be served raises RequestError, before the first
        delta or in the middle. A KeepAlive says why nothing comes just now: after `KEEP_ALIVE_S` of
        `stream_keepalive.py` without a delta, at the latest. Closing the generator cancels the generation.
        """
        ...
