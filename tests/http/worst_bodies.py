"""Twenty bodies, each of which costs a server the more the less it looks at it before it reads it."""

from __future__ import annotations

from typing import Final

from exod.http.body import MAX_BODY_BYTES

ROOM: Final = MAX_BODY_BYTES - 4000


def filled(start: bytes, piece: bytes, end: bytes, between: bytes = b",") -> bytes:
    """As many `piece`s as a body may have, with `start` before and `end` after them."""
    return start + (piece + between) * (ROOM // len(piece + between)) + piece + end


def near_misses(count: int) -> bytes:
    return b"{" + b",".join(b'"temperatur%d":1' % number for number in range(count)) + b"}"


WORST_BODIES: Final[dict[str, bytes]] = {
    "near misses of field names": near_misses(370_000),
    "near misses, few": near_misses(3000),
    "near misses, as long as may be": filled(b'{"', b"max_tokens", b'":1}', between=b""),
    "token ids": filled(b'{"prompt":[', b"1", b"]}"),
    "long token ids": filled(b'{"prompt":[', b"1234567890123456789", b"]}"),
    "fractions": filled(b'{"prompt":[', b"0.1", b"]}"),
    "empty lists": filled(b'{"prompt":[', b"[]", b"]}"),
    "lists in lists": filled(b'{"prompt":[', b"[" * 400 + b"]" * 400, b"]}"),
    "brackets without an end": b'{"prompt":' + b"[" * ROOM,
    "empty objects": filled(b'{"messages":[],"tools":[', b"{}", b"]}"),
    "objects in objects": filled(b'{"prompt":[', b'{"a":' * 300 + b"1" + b"}" * 300, b"]}"),
    "texts": filled(b'{"prompt":"a","stop":[', b'"a"', b"]}"),
    "messages": filled(b'{"messages":[', b'{"role":"user","content":"a"}', b"]}"),
    "parts of a message": filled(b'{"messages":[{"role":"user","content":[', b'{"type":"text","text":""}', b"]}]}"),
    "a long number": filled(b'{"prompt":"a","seed":', b"9", b"}", between=b""),
    "a long fraction": filled(b'{"prompt":"a","temperature":0.', b"9", b"}", between=b""),
    "escapes": filled(b'{"prompt":"', b"\\ud83d\\ude00", b'"}', between=b""),
    "backslashes": filled(b'{"prompt":"', b"\\\\", b'"}', between=b""),
    "quotation marks": filled(b'{"prompt":', b'"', b"}", between=b""),
    "biases": b'{"prompt":"a","logit_bias":{' + b",".join(b'"%d":1' % (n << 30) for n in range(260_000)) + b"}}",
}


def _posted(data: bytes) -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    return head % len(data) + data


BURSTS = {
    "heads of many lines": b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
    + b"".join(b"a%d: b\r\n" % number for number in range(2500))
    + b"\r\n",
    "messages": _posted(b'{"messages":[' + b",".join([b'{"role":"user","content":"x"}'] * 1000) + b'],"n":-1}'),
    "biases": _posted(b'{"messages":[],"logit_bias":{' + b",".join(b'"%d":1' % n for n in range(4000)) + b"}}"),
    "descriptions": b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "figures": b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n",
}
"""Whole requests, each on a hundred connections at once."""
