"""Messages between the daemon and a worker, and how they are framed.

The worker listens on a Unix socket that its daemon names; the daemon connects, and after a crash the next one
connects again and adopts it. A newer connection replaces the older. No MLX here: the daemon's core imports it too.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from exoengine import framing
from exoengine.cost_figures import CHUNK_TOKENS as CHUNK_TOKENS
from exoengine.cost_figures import LARGE_BYTES as LARGE_BYTES
from exoengine.cost_figures import NO_EDGES as NO_EDGES
from exoengine.cost_figures import NOTHING_MEASURED as NOTHING_MEASURED
from exoengine.cost_figures import SMALL_BYTES as SMALL_BYTES
from exoengine.cost_figures import EdgeCosts as EdgeCosts
from exoengine.cost_figures import RankFigures as RankFigures
from exoengine.cost_figures import StepCosts as StepCosts
from exoengine.decoding import DecodingError, decode
from exoengine.generation_request import ChatMessage as ChatMessage
from exoengine.generation_request import GenerationRequest as GenerationRequest
from exoengine.generation_request import Grammar as Grammar
from exoengine.generation_request import PromptTokens as PromptTokens
from exoengine.generation_request import Sampling as Sampling
from exoengine.generation_request import ToolCall as ToolCall
from exoengine.generation_request import Tools as Tools
from exoengine.ring_addresses import RDMA_STAND_IN as RDMA_STAND_IN
from exoengine.ring_addresses import CrossConnection as CrossConnection
from exoengine.ring_addresses import FurtherCable as FurtherCable
from exoengine.ring_addresses import RdmaSetup as RdmaSetup

PROTOCOL_VERSION: Final = 1

SPARE_READY: Final = b"r"
SPARE_GO: Final = b"g"
"""On the standard input of a spare worker (`--spare`), which is a socket of its daemon: it says the one when it has
imported everything, and becomes a worker at the other. Where the stream ends, it ends."""

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""A prompt of 1,000,000 tokens or characters with its history fits well; more is a broken peer."""


class SyncSettings(msgspec.Struct, frozen=True):
    """How steps are evaluated: the daemon's `[engine]` section."""

    sync: Literal["dynamic", "safe", "fast"] = "dynamic"
    safe_context_tokens: int = 50_000
    watchdog_s: float = 2.0
    step_deadline_s: float = 5.0
    """A decode step longer than this, and than 8 times its usual length, is a hang: the group is aborted."""
    chunk_deadline_s: float = 60.0
    """The same for a chunk of the prefill."""
    seal: Literal["control", "all"] = "control"
    """With `all` every step is safe: what goes inside graphs carries no MAC, and everything else does."""
    load_deadline_s: float = 1800.0
    """Loading is reported as failed past this; the process itself may hang in a read and must then be killed."""


class Serving(msgspec.Struct, frozen=True):
    """How many requests are served, and what is remembered of them: the daemon's `[engine]` section."""

    max_concurrent: int = 8
    """How many requests may be open at once; the others wait in their order."""
    prompt_cache: str = "25%"
    """What the caches of finished requests may occupy on a rank, as `amount_bytes` of memory_fit.py reads it."""


DEFAULT_SERVING: Final = Serving()


# --- daemon -> worker ---------------------------------------------------------------------------------------


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load layers [first_layer, last_layer) of the model in `folder`, dropping what was loaded before."""

    folder: str
    first_layer: int
    last_layer: int
    sync: SyncSettings = SyncSettings()
    max_context_tokens: int = 0
    """0: what the model's config allows."""
    kv_bits: int = 0
    """0: the KV cache is not quantised."""
    kv_group_size: int = 64
    """So many of a quantised cache's values share a scale: mlx-lm's default."""
    part: int = 0
    parts: int = 1
    """Tensor parallelism: of each of these layers this part of so many, rank by rank."""
    serving: Serving = DEFAULT_SERVING


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Leave the present group and make ready for the next. `attempt` counts the formations of one plan."""

    plan_hash: str
    attempt: int
    rank: int
    size: int
    hosts: tuple[str, ...]
    """For each rank the `address:port` on which it listens for its left neighbour; empty when size is 1."""
    addresses: tuple[str, ...] = ()
    """All addresses that the plan's ring uses."""
    connect_from: str = ""
    """This rank's own address on the edge to the next rank: where its connections start. Empty: as routed."""
    connect_interface: str = ""
    """The interface of `connect_from`. Empty, as from an older daemon: whichever the route table names."""
    listen_interface: str = ""
    """The interface of the address on which this rank listens for its left neighbour."""
    across: tuple[CrossConnection, ...] = ()
    cables: tuple[FurtherCable, ...] = ()
    key: bytes = b""
    """What the ranks of this cluster prove themselves to each other with; the same on all ranks of a plan. Only a
    rank alone does without.
    """
    accept_from: str = ""
    """The left neighbour's address on the edge to this rank: nobody else is asked. Empty: everybody is."""
    rdma: RdmaSetup | None = None
    """What goes on inside graphs goes over RDMA; None: over the native group."""


class Form(msgspec.Struct, frozen=True, tag="form"):
    """Every rank is prepared: form the group now. Sent to all ranks at about the same time."""

    plan_hash: str
    attempt: int
    deadline_s: float


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Give up the present group at once: the link is known to be dead, or another rank gave up."""

    reason: str


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Take this request. All ranks get the same requests with the same, rising `order`.

    `tokens` is what was generated already: a replaced rank learns it from its daemon and prefills it again.
    """

    order: int
    request: GenerationRequest
    tokens: tuple[int, ...] = ()


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """End this request: takes effect on all ranks after the same step, even if only one was told."""

    request_id: str


class LinkHealth(msgspec.Struct, frozen=True, tag="link_health"):
    """Are the links of this rank's edges agreed and healthy? Where not, steps are safe."""

    healthy: bool
    reason: str


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Finish the step under way, leave the group with the others, and exit 0 within `deadline_s`."""

    deadline_s: float


class TextAsked(msgspec.Struct, frozen=True, tag="text_asked"):
    """Make tokens of a request's prompt, or of `text`, or text of `tokens`. Answered beside the steps under way."""

    ask_id: str
    request: GenerationRequest | None = None
    text: str = ""
    control: bool = True
    """With the control tokens that the tokenizer puts around a text."""
    wants_pieces: bool = False
    tokens: tuple[int, ...] = ()
    will_run: bool = False
    """The request is to be run, not only counted: it is refused where its KV cache never fits."""


class KeepWaiting(msgspec.Struct, frozen=True, tag="keep_waiting"):
    """A rank is seen to compute, this one or another: for so long no deadline of a step is past."""

    for_s: float


ToWorker = Load | Prepare | Form | Abort | Begin | Cancel | LinkHealth | Leave | TextAsked | KeepWaiting


# --- worker -> daemon ---------------------------------------------------------------------------------------


class ActiveRequest(msgspec.Struct, frozen=True):
    order: int
    request: GenerationRequest
    tokens: tuple[int, ...]


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First on every connection: who this worker is and what it holds, so that a new daemon can adopt it."""

    protocol: int
    pid: int
    versions: dict[str, str]
    fingerprint: str | None
    plan_hash: str | None
    attempt: int
    formed: bool
    requests: tuple[ActiveRequest, ...]
    load: Load | None = None
    """What it has loaded, settings included: its next daemon may want another."""
    load_s: float = 0.0
    layer_s: float = 0.0
    """Both as in Loaded."""
    native: str = ""
    """Why the native group cannot be used, so that every step is safe; empty where it can."""
    has_switch: bool = False
    """Is the switch of `mlx_patches` in its MLX?"""
    recommended_bytes: int = 0
    """Of the GPU's memory, what MLX says that a process should use at most; 0 where it says nothing."""
    wired_bytes: int = 0
    """How much of it this process wires at most; 0: nothing is wired, or nothing is loaded."""
    answers_texts: bool = False
    """Does it know TextAsked? One of an earlier exod that was adopted ends its daemon's connection for it."""
    keeps_waiting: bool = False
    """Does it know KeepWaiting?"""
    no_rdma: str = "its worker is of an earlier exod"
    """Why it can be in no group over RDMA; empty where it can."""
    over_rdma: bool = False
    """Is it in one? Then only its end ends what it waits for."""
    step_costs: StepCosts = NOTHING_MEASURED
    edge_costs: EdgeCosts = NO_EDGES
    """Both as in Loaded and Formed."""


class LoadProgress(msgspec.Struct, frozen=True, tag="load_progress"):
    done_bytes: int
    total_bytes: int


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """`fingerprint` names the model's files: equal on all ranks that may form a group."""

    folder: str
    layers: tuple[int, int]
    total_layers: int
    fingerprint: str
    weight_bytes: int
    load_s: float
    max_context_tokens: int
    layer_s: float = 0.0
    """How long it took to read a layer, the last time that one was read: what is in memory is not read again."""
    wired_bytes: int = 0
    """As in Hello, from now on."""
    warning: str = ""
    """Why it may be slow or fail although it was loaded, for people."""
    part: int = 0
    parts: int = 1
    step_costs: StepCosts = NOTHING_MEASURED


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """`text` is one clear line for people: what is wrong with which file, and what is allowed."""

    folder: str
    code: str
    text: str


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    plan_hash: str
    attempt: int


class Formed(msgspec.Struct, frozen=True, tag="formed"):
    plan_hash: str
    attempt: int
    resumed_step: int
    """The first step that will be run again or next in the active request; -1 where none is active."""
    edge_costs: EdgeCosts = NO_EDGES
    cables: int = 0
    """How many further cables this rank's graphs use."""


class Aborted(msgspec.Struct, frozen=True, tag="aborted"):
    """The group is gone (or was not formed). The process lives, its weights and caches are kept."""

    plan_hash: str
    attempt: int
    code: str
    text: str
    step: int
    is_spent: bool = False
    """Must this process be replaced? It is in a group over RDMA that cannot be used again, and may wait there."""


class EdgeSeen(msgspec.Struct, frozen=True, tag="edge_seen"):
    """What this rank met on its edge to or from `rank`, its neighbour: `unanswered`, `refused`, `silent`, or
    `moved`, which is no fault. `seconds` are what `moved_bytes` took, or what the fault has lasted.
    """

    plan_hash: str
    attempt: int
    rank: int
    fault: str
    moved_bytes: int
    seconds: float


LikelyToken = tuple[int, float, bytes]
"""A token, its log probability, and its bytes (of a control token its name)."""


class CallDelta(msgspec.Struct, frozen=True):
    """A piece of a call: the first of each has its `id` and `name`, all have some more of its `arguments`."""

    index: int
    arguments: str
    id: str = ""
    name: str = ""


class TokenOut(msgspec.Struct, frozen=True, tag="token"):
    """One token of a request that all ranks have completed. `index` starts at 0 and never skips or repeats.

    `text` is what it adds to the answer's text (it may be empty inside a multi-byte character, or while it
    could still be the start of a stop string), `reasoning` what it adds to what the model thinks before.
    """

    request_id: str
    index: int
    token: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[LikelyToken, ...] = ()
    piece: bytes = b""
    """The token's own bytes; empty where it belongs to no text: a control token, or part of a marker or a call."""
    head: bytes = b""
    """With the first token of a prompt that is scored: the bytes of the prompt's very first one, which no token
    came before, so that it has no probability."""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    request_id: str
    reason: Literal["stop", "length", "cancelled"]
    text: str
    """What was held back (a possible stop string's start that came to nothing)."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_s: float
    """0 where this rank was not there from the beginning, as `decode_s`."""
    decode_s: float
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    """As in TokenOut: what was held back."""
    stop_string: str = ""
    """Which one ended it, if one did."""
    reasoning_tokens: int = 0
    """How many of the answer's tokens were thought and not said."""


CLIENT_FAULTS: Final = frozenset(
    {
        "bad_grammar",
        "bad_messages",
        "bad_request",
        "bad_token",
        "context_length_exceeded",
        "empty_prompt",
        "no_chat_template",
    }
)
"""Codes of RequestFailed that say what is wrong with the request itself."""


class RequestFailed(msgspec.Struct, frozen=True, tag="request_failed"):
    """This request cannot be served (all ranks find the same); `code` is stable, `text` is for people."""

    request_id: str
    code: str
    text: str


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """Once a second and at each change, by the control thread: a worker whose main thread hangs still sends it."""

    state: Literal["empty", "loading", "loaded", "prepared", "forming", "ready", "generating", "aborted", "leaving"]
    step: int
    in_step_s: float
    """How long the present step has lasted; 0 between steps."""
    sync_mode: Literal["fast", "safe"]
    sync_reason: str
    tokens_per_s: float
    baseline_tokens_per_s: float
    last_gap_ms: float
    kv_tokens: int
    memory_bytes: int
    longest_gpu_wait_s: float = 0.0
    """The longest that any graph of this process waited for another rank."""
    replayed_tokens: int = 0
    """How many tokens this process has put through its layers only because of faults: a rank that caught up."""
    gpu_wait_violations: int = 0
    """How many graphs waited for another rank beyond `watchdog_s`."""
    positions: tuple[tuple[int, int], ...] = ()
    """Of each open request its order, and how many tokens of its sequence all ranks have run."""
    computing: bool = False
    """Is it in a step that takes long, and used the processor since the last look? One that hangs does not."""
    prefilling: bool = False
    """Is the prompt of any open request not computed yet?"""
    figures: RankFigures = RankFigures()


class TextAnswered(msgspec.Struct, frozen=True, tag="text_answered"):
    """`code` is empty where it went well, else as in RequestFailed, or `not_ready`."""

    ask_id: str
    tokens: tuple[int, ...] = ()
    thinks: bool = False
    pieces: tuple[bytes, ...] = ()
    """The bytes of each token."""
    text: str = ""
    code: str = ""
    problem: str = ""


class Left(msgspec.Struct, frozen=True, tag="left"):
    """Sent last before a clean exit."""


FromWorker = (
    Hello
    | LoadProgress
    | Loaded
    | LoadFailed
    | Prepared
    | Formed
    | Aborted
    | EdgeSeen
    | TokenOut
    | Finished
    | RequestFailed
    | Heartbeat
    | Left
    | TextAnswered
)

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


class ProtocolError(Exception):
    """The other end sent what this protocol does not allow; the connection must be closed."""


def encode(message: ToWorker | FromWorker) -> bytes:
    """The whole frame, header included."""
    try:
        return framing.frame(_encoder.encode(message), MAX_FRAME_BYTES)
    except framing.FrameError as error:
        raise ProtocolError(str(error)) from None


def decode_to_worker(body: bytes) -> ToWorker:
    """Raises ProtocolError where `body` is no message for a worker."""
    try:
        return decode(_to_worker, body)
    except DecodingError as error:
        raise ProtocolError(f"not a message for a worker: {error}") from error


def decode_from_worker(body: bytes) -> FromWorker:
    """Raises ProtocolError where `body` is no message of a worker."""
    try:
        return decode(_from_worker, body)
    except DecodingError as error:
        raise ProtocolError(f"not a message of a worker: {error}") from error


async def read_frame(reader: framing.ByteReader) -> bytes | None:
    """The body of the next frame; None at the end of the stream. Raises ProtocolError on a frame too long."""
    try:
        return await framing.read(reader, MAX_FRAME_BYTES)
    except framing.FrameError as error:
        raise ProtocolError(str(error)) from None
