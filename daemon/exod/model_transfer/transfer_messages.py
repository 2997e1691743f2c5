"""What two nodes say to each other on a file connection, and how it is framed.

One connection, apart from the control plane's, carries questions one after the other. It begins with TLS: who asks
says `Keys`, then both end TLS and go on with `sealed_stream.py`. Each message is a frame of MessagePack
(`exoengine/framing.py`); after `Bytes` come exactly `count` bytes of the file, unframed. Sizes and offsets are
bytes. Raises FrameError where the other end speaks another protocol, and ConnectionError where it ends.
"""

from __future__ import annotations

import re
import secrets
import socket
import ssl
from typing import Final, Protocol, TypeVar

import msgspec

from exod.model_transfer.sealed_stream import KEY_BYTES, RECORD_BYTES, SealedStream
from exoengine import framing
from exoengine.decoding import DecodingError, decode
from exoengine.framing import FrameError

MAX_FRAME_BYTES: Final = 4 * 1024 * 1024
"""The longest message lists the files of a model: the largest have some thousands, of 200 bytes each."""

MAX_FILES: Final = 16_384
MAX_NAME_CHARS: Final = 512
PIECE_BYTES: Final = RECORD_BYTES
"""What one read or write of a disk takes: a record, so that it is copied nowhere in between."""

PATTERNS: Final = (
    "*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "tiktoken.model", "*.txt", "*.jsonl",
    "*.jinja",
)  # fmt: skip
"""What a rank reads of a model; many repositories hold the same weights a second time in another format."""

_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*")
_DIGEST: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class OfferedFile(msgspec.Struct, frozen=True):
    """One file of a model. `here` is false while the node has not got it itself."""

    name: str
    size: int
    etag: str
    """What a cache names it by: SHA-256 of its content, or git's SHA-1 for a small one."""
    sha256: str = ""
    """Empty where the file is not here, and its etag is no SHA-256."""
    here: bool = True


class Keys(msgspec.Struct, frozen=True, tag="keys"):
    """Random ones, made for this connection by who asks: for what it sends, and for what it receives."""

    questions: bytes
    answers: bytes


class AskFiles(msgspec.Struct, frozen=True, tag="ask_files"):
    model: str


class Files(msgspec.Struct, frozen=True, tag="files"):
    commit: str
    """Names this set of files; 40 hexadecimal digits."""
    files: tuple[OfferedFile, ...]


class AskBytes(msgspec.Struct, frozen=True, tag="ask_bytes"):
    """The file's bytes from `offset` to its end."""

    model: str
    name: str
    offset: int


class Bytes(msgspec.Struct, frozen=True, tag="bytes"):
    count: int


class Hashing(msgspec.Struct, frozen=True, tag="hashing"):
    """The answer to AskFiles takes its time: files are read to tell their SHA-256."""

    name: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """`code`: `not_here`, `busy`, `not_a_member`."""

    code: str
    text: str


Question = AskFiles | AskBytes
Answer = Files | Bytes | Hashing | Refused

Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()
_questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_keys: msgspec.msgpack.Decoder[Keys] = msgspec.msgpack.Decoder(Keys)


class Stream(framing.BlockingStream, Protocol):
    """A connected TLS socket that blocks, or a SealedStream."""

    def sendall(self, data: bytes, /) -> None: ...


def ask_over(tls: ssl.SSLSocket) -> SealedStream:
    """Of who asks: gives the other end keys, and ends TLS."""
    keys = Keys(secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES))
    send(tls, keys)
    tls.unwrap()
    return SealedStream(tls, keys.questions, keys.answers)


def answer_over(tls: ssl.SSLSocket) -> SealedStream:
    """Of who answers: takes the keys, and ends TLS."""
    body = framing.receive(tls, MAX_FRAME_BYTES)
    if body is None:
        raise ConnectionResetError("the other node closed the connection")
    keys = _decoded(_keys, body)
    if len(keys.questions) != KEY_BYTES or len(keys.answers) != KEY_BYTES:
        raise FrameError("keys of another length")
    tls.unwrap()
    return SealedStream(tls, keys.answers, keys.questions)


def send(stream: Stream, message: Question | Answer | Keys) -> None:
    stream.sendall(framing.frame(_encoder.encode(message), MAX_FRAME_BYTES))


def receive_question(stream: Stream) -> Question | None:
    """None where the other end has no more."""
    body = framing.receive(stream, MAX_FRAME_BYTES)
    return None if body is None else _decoded(_questions, body)


def receive_answer(stream: Stream) -> Answer:
    body = framing.receive(stream, MAX_FRAME_BYTES)
    if body is None:
        raise ConnectionResetError("the other node closed the connection")
    return _decoded(_answers, body)


def _decoded(decoder: msgspec.msgpack.Decoder[Message], body: bytes) -> Message:
    try:
        return decode(decoder, body)
    except DecodingError as error:
        raise FrameError(f"not a message of a file connection: {error}") from None


def is_model_name(model: str) -> bool:
    """A repository's id, or a folder's absolute path."""
    parts = model.split("/")
    if model.startswith("/"):
        return len(model) <= MAX_NAME_CHARS and "\0" not in model and ".." not in parts
    return len(parts) == 2 and all(_PART.fullmatch(part) for part in parts)


def is_file_name(name: str) -> bool:
    """Names a file below a folder and nothing else: what a peer says becomes a path on this disk."""
    parts = name.split("/")
    return len(name) <= MAX_NAME_CHARS and len(parts) <= 8 and all(_PART.fullmatch(part) for part in parts)


def problem_of(files: Files) -> str:
    """What is wrong with a peer's list; empty where nothing is."""
    if not _COMMIT.fullmatch(files.commit):
        return "its list of files has no revision"
    if len(files.files) > MAX_FILES:
        return f"it lists more than {MAX_FILES} files"
    for file in files.files:
        if not is_file_name(file.name):
            return f"it lists a file by the name {file.name[:80]!r}"
        digests_well = _DIGEST.fullmatch(file.etag) and (not file.sha256 or len(file.sha256) == 64)
        if not digests_well or not 0 <= file.size < 1 << 50:
            return f"it does not say what {file.name} holds"
    return "" if any(file.name.endswith(".safetensors") for file in files.files) else "its list has no weights"


def shut(sock: socket.socket) -> None:
    """Ends what another thread reads or writes there."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
