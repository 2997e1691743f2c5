"""What strangers' bytes reach, each as one function: it raises what its room says it raises, or nothing.

A target takes bytes and returns nothing. `allowed` is what may come out of its room; everything else is a finding.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Final

import h11
import msgspec
from zeroconf import DNSIncoming, ServiceInfo

from exod.core.base import events
from exod.core.base.config import CoreConfig
from exod.core.base.mesh_messages import (
    Ack,
    Commit,
    Committed,
    LinkReport,
    LinkSummary,
    Nack,
    Propose,
    RenegotiateWish,
)
from exod.core.engine.engine_events import EngineMessageReceived, PlanCommitted
from exod.core.engine.engine_messages import (
    Begun,
    CancelRequest,
    EngineMessage,
    FormOrder,
    ModelWish,
    Queued,
    RelayAgain,
    RelayedOutput,
    RequestsEnded,
    SubmitRefused,
    TellBegun,
)
from exod.core.engine_core import EngineCore
from exod.core.membership.membership import ClusterKey, Membership, MembershipRecord
from exod.core.node import NodeCore
from exod.core.probe.datagram import Datagram, encode
from exod.errors import ConfigError, RequestError, TrustError
from exod.http.body import check_body_type, check_weight
from exod.http.connection import MAX_HEAD_BYTES, FramingConnection
from exod.http.dialects.openai_requests import read_chat, read_completion
from exod.http.exchange import check_framing, headers_of
from exod.http.guard import HttpGuard
from exod.local_api import server as local_api
from exod.model import Epoch, Kind, NodeId
from exod.network.mdns_discovery import SERVICE, read_announcement
from exod.peers.peer_messages import FrameError, Goodbye, Greeting, KeyOffer, take
from exod.peers.trust import tls_contexts
from exod.platform.crash_parser import CrashTextError
from exoengine.model_files.model_folder import ModelFolderError
from exoengine.protocol import (
    Begin,
    Finished,
    Form,
    GenerationRequest,
    Heartbeat,
    Load,
    Prepare,
    ProtocolError,
    SyncSettings,
    TokenOut,
    decode_from_worker,
    decode_to_worker,
)
from exoengine.protocol import encode as encode_protocol
from exoengine.ring import step_messages
from exoengine.ring.edge_proof import tell_nobody
from exoengine.ring.message_ring import RingLostError
from exoengine.ring.message_ring import decode as decode_ring_message
from exoengine.ring.rendezvous import _Meeting
from exoengine.ring.ring_plan import RingPlan
from tests.core.engine.engine_samples import a_plan, begin, status, submit
from tests.core.pair.cards import KEY, card
from tests.fuzz.file_targets import (
    INVITATION,
    KEY_MESSAGES,
    OWN_FILES,
    crash,
    invitation,
    model,
    model_seeds,
    own_files,
)

ME, PEER = card(1, "bridge0=10.0.0.1/24"), card(2, "bridge0=10.0.0.2/24")
MESSAGEPACK: Final = msgspec.msgpack.Encoder()
JSON: Final = msgspec.json.Encoder()


class Target(msgspec.Struct, frozen=True):
    name: str
    seeds: tuple[bytes, ...]
    run: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...] = ()
    weight: float = 1.0
    """Its share of the inputs: those that touch a disk or a cipher get less."""


# --- HTTP -----------------------------------------------------------------------------------------------------

BODIES = (
    b'{"model":"default","messages":[{"role":"system","content":"a"},{"role":"user","content":"count from 1 to 3"}'
    b"],"
    b'"stream":true,"stream_options":{"include_usage":true},"max_tokens":5,"stop":["a","b"],"seed":7,'
    b'"logit_bias":{"1":5},"logprobs":true,"top_logprobs":2,"temperature":0.5,"top_p":0.9,"n":1}',
    b'{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"tools":[{"type":"function","function":'
    b'{"name":"f","description":"d","parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}}],'
    b'"tool_choice":"auto"}',
    b'{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":'
    b'{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"7"}]}',
    b'{"prompt":"abc","max_tokens":5,"logprobs":1,"echo":true,"stop":"x"}',
    b'{"prompt":[1,2,3],"top_k":5,"min_p":0.1,"repetition_penalty":1.1}',
    b'{"prompt":[[1,2],[3]],"n":2}',
)


def body(data: bytes) -> None:
    for read in (read_chat, read_completion):
        try:
            check_weight(data)
            read(data)
        except RequestError as error:
            assert error.code  # noqa: PT017
            assert "\n" not in error.text  # noqa: PT017


HEADS = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:52415\r\nContent-Type: application/json\r\n"
    b"Origin: http://localhost:3000\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 2\r\n\r\n{}",
    b"OPTIONS /v1/models HTTP/1.1\r\nHost: [::1]\r\nOrigin: app://x\r\nAccess-Control-Request-Method: POST\r\n"
    b"Access-Control-Request-Headers: authorization, x-y\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /v1/models/%2e%2e HTTP/1.0\r\nauthorization: Bearer 0123456789abcdef\r\nupgrade: websocket\r\n"
    b"connection: upgrade\r\n\r\n",
)
GUARDS = (HttpGuard(), HttpGuard(("0123456789abcdef",), ("a",), ("https://b.example",)))


def head(data: bytes) -> None:
    connection = FramingConnection(h11.SERVER, MAX_HEAD_BYTES)
    connection.receive_data(data)
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            _judge_head([(name.lower(), value) for name, value in event.headers])
        elif not isinstance(event, h11.Data):
            return


def _judge_head(fields: list[tuple[bytes, bytes]]) -> None:
    headers = headers_of({"headers": fields})
    with contextlib.suppress(RequestError):
        check_framing({"headers": fields})
    with contextlib.suppress(RequestError):
        check_body_type(headers)
    for guard in GUARDS:
        guard.cors(headers)
        with contextlib.suppress(RequestError):
            guard.check("/v1/models", headers)
        with contextlib.suppress(RequestError):
            guard.preflight(headers)


# --- the control socket and the control plane -----------------------------------------------------------------

LINES = (
    b'{"verb":"status","v":1,"id":1,"args":{}}',
    b'{"v":1,"id":"seven","verb":"links","args":{"peer":"studio2"}}',
    b'{"verb":"chat","v":1,"id":2,"args":{"request":{"messages":[{"role":"user","content":"x"}]}}}',
)


def line(data: bytes) -> None:
    local_api._id_of(data)
    local_api._parse(data)


SERVER_CONTEXT, CLIENT_CONTEXT = tls_contexts(bytes(32), NodeId("1" * 16))


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = CLIENT_CONTEXT.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def before_tls(data: bytes) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = SERVER_CONTEXT.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(data)
    server.do_handshake()


PLAN = a_plan(ME.id, PEER.id)
EPOCH = Epoch(1, 7)
SUMMARY = LinkSummary(
    ME.id, ME.incarnation, True, None, None, "bridge0", "10.0.0.2", Kind.THUNDERBOLT, True, 0.3, "studio1"
)
MESH_MESSAGES = (
    Greeting(1, PEER),
    Goodbye(7, "bye"),
    LinkReport(PEER.id, PEER.incarnation, 1, 1, (SUMMARY,)),
    Propose(PLAN, "x"),
    Ack(PEER.id, PEER.incarnation, EPOCH, "plan1"),
    Nack(PEER.id, PEER.incarnation, EPOCH, "plan1", 1, "x"),
    Commit(PLAN, "x"),
    Committed(PEER.id, PEER.incarnation, EPOCH, "plan1"),
    RenegotiateWish(PEER.id, "x"),
)
ENGINE_MESSAGES = (
    CancelRequest("r"),
    RelayAgain("r", 0),
    Queued("r"),
    SubmitRefused("r", "queue_full", "x", 1.0),
    RelayedOutput((TokenOut("r", 0, 1, "x"),), 0),
    status(PEER.id, begun=3, finished=1, ended=(2,), layers=(6, 12)),
    FormOrder(PEER.id, "plan1", 1, "prepare"),
    submit("r", origin=PEER.id, tokens=(1, 2)),
    begin(4, origin=PEER.id, tokens=(1, 2), ended=3),
    TellBegun(PEER.id),
    Begun(begin(5, origin=PEER.id)),
    RequestsEnded(PEER.id, 3, (5, 6)),
    ModelWish(PEER.id, "m"),
)


def framed(message: object) -> bytes:
    encoded = MESSAGEPACK.encode(message)
    return struct.pack(">I", len(encoded)) + encoded


PIN = "b" * 64


class Cores:
    """A node's two cores, which forget nothing of what they were told before."""

    def __init__(self) -> None:
        self.now = 0.0
        self.renew()

    def renew(self) -> None:
        self.node = NodeCore(ME, KEY, CoreConfig(), "linux", 1, 0, self.now)
        self.node.handle(events.PeerCardReceived(PEER), self.now)
        self.node.handle(events.PeerConnected(PEER.id), self.now)
        self.membership = Membership(ME.id, MembershipRecord(ClusterKey(0, KEY, "a"), pins={PEER.id: PIN}))
        self.engine = EngineCore(ME.id, 1, SyncSettings(), 60.0, 52420)
        self.engine.handle(PlanCommitted(a_plan(ME.id, PEER.id), "why"), self.now)

    def tick(self) -> float:
        self.now += 0.01
        if int(self.now * 100) % 500 == 0:
            self.renew()
        return self.now


CORES = Cores()


def after_tls(data: bytes) -> None:
    buffer = bytearray(data)
    while (message := take(buffer)) is not None:
        now = CORES.tick()
        match message:
            case Greeting(card=found):
                if found.id == PEER.id:
                    CORES.node.handle(events.PeerCardReceived(found), now)
            case Propose() | Ack() | Nack() | Commit() | Committed() | LinkReport() | RenegotiateWish():
                CORES.node.handle(events.MessageReceived(PEER.id, message), now)
            case KeyOffer(number=number, key=key, by=by, removed=removed):
                CORES.membership.offered(PEER.id, PIN, ClusterKey(number, key, by), removed, now)
            case _ if isinstance(message, EngineMessage):
                CORES.engine.handle(EngineMessageReceived(PEER.id, message), now)


# --- probes ----------------------------------------------------------------------------------------------------

DATAGRAM = Datagram(
    sender=PEER.id,
    destination=ME.id,
    sender_incarnation=PEER.incarnation,
    destination_incarnation=ME.incarnation,
    seq=1,
    order=1,
    source_address="10.0.0.2",
    target_address="10.0.0.1",
    interval_ms=50,
)
MAC_BYTES = 16


def datagram(data: bytes) -> None:
    """As it is, and as somebody who has the key could send it."""
    now = CORES.tick()
    body_ = data[:-MAC_BYTES]
    mac = hashlib.blake2b(body_, digest_size=MAC_BYTES, key=KEY).digest()
    for one in (data, body_ + mac):
        CORES.node.handle(events.DatagramReceived("10.0.0.1", "10.0.0.2", one, now), now)
        CORES.node.handle_timer(now)


# --- the ring ---------------------------------------------------------------------------------------------------

RING_PLAN = RingPlan("plan", 1, 0, 2, ("127.0.0.1:1", "127.0.0.1:2"), b"k" * 32)


def hellos() -> tuple[bytes, ...]:
    meetings = [
        _Meeting(RING_PLAN, tell_nobody),
        _Meeting(RingPlan("plan", 1, 1, 2, RING_PLAN.hosts, b"k" * 32), tell_nobody),
    ]
    found = tuple(one._hello(key) for one in meetings for key in one._outward)
    for one in meetings:
        one.close()
    return found


def hello(data: bytes) -> None:
    meeting = _Meeting(RING_PLAN, tell_nobody)
    try:
        for one in (data, data[:-32] + meeting._mac(data[:-32])):
            meeting._key_of(one)
    finally:
        meeting.close()


STEP_SHAPES = tuple(
    shape
    for shape in vars(step_messages).values()
    if isinstance(shape, type) and issubclass(shape, msgspec.Struct) and shape is not msgspec.Struct
)


RING_MESSAGES = tuple(MESSAGEPACK.encode(one) for one in (["step", 1, 0, 1, 0, -1], [1, 2], ["open", 3]))


def ring_message(data: bytes) -> None:
    for shape in STEP_SHAPES:
        try:
            decode_ring_message(data, shape)
        except RingLostError as error:
            assert "\n" not in str(error)  # noqa: PT017


WORKER_MESSAGES = (
    Load("/m", 0, 4),
    Prepare("p", 1, 0, 2, ("a:1", "b:2"), key=b"k" * 32),
    Form("p", 1, 5.0),
    Begin(1, GenerationRequest("r", 5, prompt=(1, 2, 3))),
    TokenOut("r", 0, 5, "x"),
    Finished("r", "stop", "", 1, 2, 0, 0.1, 0.2),
    Heartbeat("ready", 1, 0.0, "fast", "", None, None, None, 0, 0),
)


def worker(data: bytes) -> None:
    for decode in (decode_to_worker, decode_from_worker):
        with contextlib.suppress(ProtocolError):
            decode(data)


# --- multicast DNS ----------------------------------------------------------------------------------------------

TEXT = {"id": "00000000000000aa", "name": "studio1", "incarnation": "7", "version": "0.1.0", "cluster": "home"}
NAME = f"00000000000000aa.{SERVICE}"


def mdns_packets() -> tuple[bytes, ...]:
    info = ServiceInfo(
        SERVICE, NAME, port=52410, properties=TEXT, server="exod-a.local.", parsed_addresses=["10.0.0.2"]
    )
    from zeroconf._protocol.outgoing import DNSOutgoing

    out = DNSOutgoing(0x8400)
    records = [info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()]
    for record in records:
        out.add_answer_at_time(record, 0)
    return tuple(out.packets())


def mdns(data: bytes) -> None:
    incoming = DNSIncoming(data)
    if not incoming.valid:
        return
    for record in incoming.answers():
        text = getattr(record, "text", None)
        if text is not None:
            info = ServiceInfo(SERVICE, NAME, port=1, properties=text)
            found = read_announcement(NAME, info.decoded_properties, ["10.0.0.2"], 1, "home")
            assert found is None or found.name.isprintable()


REPORT_OF_OLD = b"""Process:               exod [501]
Path:                  /usr/local/bin/python3
Parent Process:        launchd [1]
Date/Time:             2026-03-13 07:28:38.1234 -0700
Exception Type:        EXC_CRASH (SIGABRT)

Application Specific Information:
abort() called

Thread 0 Crashed:: Dispatch queue: com.apple.main-thread
0   libsystem_kernel.dylib  0x00000001 __pthread_kill + 8
"""

# --- disks -------------------------------------------------------------------------------------------------------


def all_targets() -> Sequence[Target]:
    return (
        Target("http body", BODIES, body),
        Target("http head", HEADS, head, (h11.RemoteProtocolError,)),
        Target("control socket", LINES, line, (RequestError,)),
        Target("control plane before TLS", (client_hello(),), before_tls, (ssl.SSLError,), 0.3),
        Target(
            "control plane after TLS",
            tuple(framed(one) for one in (*MESH_MESSAGES, *ENGINE_MESSAGES, *KEY_MESSAGES)),
            after_tls,
            (FrameError,),
        ),
        Target("probe", (encode(DATAGRAM, KEY),), datagram),
        Target("rendezvous", hellos(), hello),
        Target(
            "ring message",
            tuple(MESSAGEPACK.encode(one) for one in (["step", 1, 0, 1, 0, -1], [1, 2])),
            ring_message,
        ),
        Target("worker", tuple(encode_protocol(one)[4:] for one in WORKER_MESSAGES), worker),
        Target("multicast DNS", mdns_packets(), mdns),
        Target("model folder", model_seeds(), model, (ModelFolderError,), 0.2),
        Target("invitation", (INVITATION,), invitation, (TrustError,)),
        Target("own files", OWN_FILES, own_files, (ConfigError,), 0.05),
        Target(
            "crash report",
            (b'{"app_name":"x","bug_type":"309"}\n{"pid":1,"procName":"x"}', REPORT_OF_OLD),
            crash,
            (CrashTextError,),
        ),
    )


def memory_bytes() -> int:
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)
