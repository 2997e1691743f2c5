"""OpenAI's shapes of answers: chunks, whole answers, usage, models, and the error object with its HTTP status.

Decides only shapes: which field holds what, and which stable `code` means which status. Pure.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from exod.daemon_api.interface import GenerationEnd, TextDelta, Usage
from exod.errors import ExitCode, RequestError
from exod.http.dialects.ask import Ask
from exod.http.dialects.choices import Choice, usage_of
from exod.http.dialects.fields import FieldError
from exod.http.dialects.shown_tokens import ShownToken
from exoengine.protocol import CLIENT_FAULTS, CallDelta, ToolCall

STATUS_OF_CODE: Final[dict[str, int]] = {
    "invalid_api_key": 401,
    "host_refused": 403,
    "origin_refused": 403,
    "commands_off": 403,
    "not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "head_timeout": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "invalid_value": 400,
    "invalid_json": 400,
    "invalid_request": 400,
    "unknown_field": 400,
    "unsupported_value": 400,
    "previous_response_not_found": 400,
    "item_not_found": 400,
    "embeddings_not_supported": 400,
    **dict.fromkeys(CLIENT_FAULTS, 400),
    "not_ready": 503,
    "draining": 503,
    "queue_full": 429,
    "unavailable": 503,
    "recovery_failed": 503,
    "step_failed": 503,
    "too_slow": 503,
    "shutting_down": 503,
    "cancelled": 503,
    "internal_error": 500,
}

STATUS_OF_EXIT: Final[dict[ExitCode, int]] = {
    ExitCode.USAGE: 400,
    ExitCode.DEGRADED: 503,
    ExitCode.NO_PATH: 503,
    ExitCode.TIMED_OUT: 503,
}
"""For codes that the table above does not name: the exit code tells whether the client or the cluster is at
fault."""


_FIELD_FIRST: Final = re.compile(r"([a-z_]{1,40}(?:\.\w{1,64})*): ")
"""How a text begins that names the field it is about."""


def status_of(error: RequestError) -> int:
    return STATUS_OF_CODE.get(error.code, STATUS_OF_EXIT.get(error.exit_code, 500))


def error_object(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object: `{"error": {"message", "type", "param", "code"}}`."""
    status = status_of(error)
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = error.param or None if isinstance(error, FieldError) else None
    if error.code == "model_not_found":
        param = "model"
    elif error.code in CLIENT_FAULTS and (named := _FIELD_FIRST.match(error.text)):  # found by a rank
        param = named[1]
    return {"error": {"message": error.text, "type": kind, "param": param, "code": error.code}}


def usage_object(usage: Usage) -> dict[str, Any]:
    counted: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens:
        counted["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return counted


def models_object(names: list[str], created: int) -> dict[str, Any]:
    data = [{"id": name, "object": "model", "created": created, "owned_by": "exod"} for name in names]
    return {"object": "list", "data": data}


class Answer(ABC):
    """The answer of one request while it is generated, with all its choices. Each dialect gives it its own form."""

    def __init__(self, ask: Ask, model: str, created: int) -> None:
        self.ask, self.model, self.created = ask, model, created
        echoes = ask.echoes or ("",) * len(ask.generations)
        wants_tokens = ask.generations[0].sampling.logprobs >= 0
        self.choices = [Choice(echo, wants_tokens=wants_tokens) for echo in echoes]

    def take(self, at: int, delta: TextDelta | GenerationEnd) -> bytes:
        """The bytes of a stream for one more token, or the end, of choice `at`."""
        self.choices[at].take(delta)
        return self.ended(at, delta) if isinstance(delta, GenerationEnd) else self.added(at, delta)

    @property
    def usage(self) -> Usage:
        prompts = {id(request.prompt) for request in self.ask.generations}
        return usage_of(self.choices, len(prompts))

    @property
    def running(self) -> int:
        """The first choice that has not ended."""
        return next((at for at, choice in enumerate(self.choices) if choice.end is None), 0)

    @abstractmethod
    def begin(self) -> bytes:
        """The beginning of a stream."""

    @abstractmethod
    def added(self, at: int, delta: TextDelta) -> bytes: ...

    @abstractmethod
    def ended(self, at: int, end: GenerationEnd) -> bytes: ...

    @abstractmethod
    def close(self) -> bytes:
        """The end of a stream."""

    @abstractmethod
    def pause(self) -> bytes:
        """While nothing comes: something that every client accepts and does not show."""

    def failed(self, error: RequestError) -> bytes:
        """The end of a stream that fails."""
        return sse(error_object(error))

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The complete answer, for a request that is not streamed."""


class OpenAiAnswer(Answer):
    """The two endpoints of OpenAI that stream chunks of choices, and end with [DONE]."""

    chunk_kind: str
    whole_kind: str

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.ask.request_id, "created": self.created, "model": self.model, "object": kind}

    @property
    def _wants_logprobs(self) -> bool:
        return self.ask.generations[0].sampling.logprobs >= 0

    def _chunk(self, at: int, content: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> bytes:
        choice = {"index": at, **content, "logprobs": logprobs, "finish_reason": reason}
        return sse({**self._head(self.chunk_kind), "choices": [choice]})

    def close(self) -> bytes:
        if not self.ask.include_usage:
            return SSE_DONE
        usage = {**self._head(self.chunk_kind), "choices": [], "usage": usage_object(self.usage)}
        return sse(usage) + SSE_DONE

    def whole(self) -> dict[str, Any]:
        choices = [self._whole_choice(at, choice) for at, choice in enumerate(self.choices)]
        return {**self._head(self.whole_kind), "choices": choices, "usage": usage_object(self.usage)}

    @abstractmethod
    def _whole_choice(self, at: int, choice: Choice) -> dict[str, Any]: ...


class ChatAnswer(OpenAiAnswer):
    chunk_kind = "chat.completion.chunk"
    whole_kind = "chat.completion"

    def begin(self) -> bytes:
        """A chat begins with the role."""
        first = {"delta": {"role": "assistant", "content": ""}}
        return b"".join(self._chunk(at, first) for at in range(len(self.choices)))

    def added(self, at: int, delta: TextDelta) -> bytes:
        logprobs = self._new_logprobs(at)
        content, *calls = self._deltas(delta)
        data = self._chunk(at, {"delta": content}, logprobs) if content or logprobs else b""
        return data + b"".join(self._chunk(at, {"delta": call}) for call in calls)

    def ended(self, at: int, end: GenerationEnd) -> bytes:
        *deltas, last = self._deltas(end)
        data = b"".join(self._chunk(at, {"delta": delta}) for delta in deltas)
        return data + self._chunk(at, {"delta": last}, self._new_logprobs(at), self._reason(self.choices[at]))

    def _new_logprobs(self, at: int) -> dict[str, Any] | None:
        tokens = self.choices[at].new_tokens
        return {"content": chat_logprobs(tokens)} if tokens else None

    def pause(self) -> bytes:
        return self._chunk(self.running, {"delta": {}})

    def _deltas(self, delta: TextDelta | GenerationEnd) -> list[dict[str, Any]]:
        return _chat_deltas(delta)

    def _whole_choice(self, at: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [call_object(call) for call in choice.calls]
        return {
            "index": at,
            "logprobs": {"content": chat_logprobs(choice.tokens)} if self._wants_logprobs else None,
            "finish_reason": self._reason(choice),
            "message": message,
        }

    def _reason(self, choice: Choice) -> str:
        assert choice.end is not None
        called = choice.calls and choice.end.finish_reason == "stop"
        return "tool_calls" if called else choice.end.finish_reason


def _chat_deltas(delta: TextDelta | GenerationEnd) -> list[dict[str, Any]]:
    """One event for each call, with all that this token adds to it: simple clients read an event's first call."""
    content: dict[str, Any] = {}
    if delta.text:
        content["content"] = delta.text
    if delta.reasoning:
        content["reasoning_content"] = delta.reasoning
    called: dict[int, CallDelta] = {}
    for call in delta.calls:
        before = called.get(call.index)
        if before is not None:
            call = msgspec.structs.replace(before, arguments=before.arguments + call.arguments)
        called[call.index] = call
    calls = [{"tool_calls": [_call_delta(call)]} for call in called.values()]
    return [{**content, **calls[0]}, *calls[1:]] if calls else [content]


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if call.id:
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": call.index, "id": call.id, "type": "function", "function": function}
    return {"index": call.index, "function": {"arguments": call.arguments}}


def call_object(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


class CompletionAnswer(OpenAiAnswer):
    chunk_kind = whole_kind = "text_completion"

    def begin(self) -> bytes:
        return b"".join(self._text(at, choice.text) for at, choice in enumerate(self.choices) if choice.text)

    def added(self, at: int, delta: TextDelta) -> bytes:
        logprobs = self._new_logprobs(at)
        return self._text(at, delta.text, logprobs) if delta.text or logprobs else b""

    def ended(self, at: int, end: GenerationEnd) -> bytes:
        return self._text(at, end.text, self._new_logprobs(at), end.finish_reason)

    def _new_logprobs(self, at: int) -> dict[str, Any] | None:
        tokens = self.choices[at].new_tokens
        return completion_logprobs(tokens) if tokens else None

    def pause(self) -> bytes:
        return self._text(self.running, "")

    def _text(self, at: int, text: str, logprobs: Any = None, reason: str | None = None) -> bytes:
        return self._chunk(at, {"text": text}, logprobs, reason)

    def _whole_choice(self, at: int, choice: Choice) -> dict[str, Any]:
        assert choice.end is not None
        return {
            "index": at,
            "logprobs": completion_logprobs(choice.tokens) if self._wants_logprobs else None,
            "finish_reason": choice.end.finish_reason,
            "text": choice.text,
        }


# --- log probabilities --------------------------------------------------------------------------------------


def token_name(piece: bytes) -> str:
    """A token as text; one that is a part of a character by its bytes, as OpenAI writes them."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def chat_logprobs(tokens: Sequence[ShownToken]) -> list[dict[str, Any]]:
    return [_chat_logprob(token.delta) for token in tokens]


def _chat_logprob(delta: TextDelta) -> dict[str, Any]:
    top = [_token_logprob(piece, logprob) for _, logprob, piece in delta.top_logprobs]
    return {**_token_logprob(delta.piece, delta.logprob), "top_logprobs": top}


def _token_logprob(piece: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": token_name(piece), "logprob": logprob, "bytes": list(piece)}


def completion_logprobs(tokens: Sequence[ShownToken]) -> dict[str, Any]:
    """The older shape: lists of the same length, and where in the text each token begins."""
    names: list[str] = []
    logprobs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for token in tokens:
        delta = token.delta
        names.append(token_name(delta.head if token.is_head else delta.piece))
        logprobs.append(None if token.is_head else delta.logprob)
        tops.append(None if token.is_head else _top_names(delta))
    offsets = [token.offset for token in tokens]
    return {"tokens": names, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def _top_names(delta: TextDelta) -> dict[str, float]:
    """The likeliest tokens and the drawn one by their texts; of two with the same text, the second by its id."""
    drawn = (delta.token, delta.logprob if delta.logprob is not None else 0.0, delta.piece)
    named: dict[str, float] = {}
    for token, logprob, piece in dict.fromkeys([*delta.top_logprobs, drawn]):
        name = token_name(piece)
        named[f"token_id:{token}" if name in named else name] = logprob
    return named


def sse(value: Any) -> bytes:
    """One server-sent event that holds `value` as JSON."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


SSE_DONE: Final = b"data: [DONE]\n\n"


def sse_comment(text: str) -> bytes:
    """A comment line, which every client skips: it keeps the connection and all proxies between from timing out."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"
