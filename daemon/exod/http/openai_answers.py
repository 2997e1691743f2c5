"""OpenAI's shapes of answers: chunks, whole answers, usage, models, and the error object with its HTTP status.

Decides only shapes: which field holds what, and which stable `code` means which status. Pure.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from exod.daemon_api.interface import TextDelta, Usage
from exod.errors import ExitCode, RequestError
from exod.http.openai_requests import FieldError
from exoengine.protocol import CLIENT_FAULTS

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
    **dict.fromkeys(CLIENT_FAULTS, 400),
    "not_ready": 503,
    "queue_full": 503,
    "unavailable": 503,
    "recovery_failed": 503,
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
"""For codes that the table above does not name: what a command would end with says whose fault it is."""


def status_of(error: RequestError) -> int:
    return STATUS_OF_CODE.get(error.code, STATUS_OF_EXIT.get(error.exit_code, 500))


def error_object(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object: `{"error": {"message", "type", "param", "code"}}`."""
    status = status_of(error)
    kind = "authentication_error" if status == 401 else "invalid_request_error" if status < 500 else "server_error"
    param = error.param or None if isinstance(error, FieldError) else None
    if error.code == "model_not_found":
        param = "model"
    return {"error": {"message": error.text, "type": kind, "param": param, "code": error.code}}


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def models_object(names: list[str], created: int) -> dict[str, Any]:
    data = [{"id": name, "object": "model", "created": created, "owned_by": "exod"} for name in names]
    return {"object": "list", "data": data}


class AnswerShape:
    """One answer's shapes. `chat` decides between the two endpoints' field names."""

    def __init__(self, *, chat: bool, request_id: str, model: str, created: int, logprobs: bool) -> None:
        self._chat = chat
        self._logprobs = logprobs
        self._head: dict[str, Any] = {"id": request_id, "created": created, "model": model}

    def first_chunk(self) -> dict[str, Any] | None:
        """A chat stream begins with the role; a completion stream has no such chunk."""
        return self._chunk({"role": "assistant", "content": ""}, None, None) if self._chat else None

    def text_chunk(self, delta: TextDelta) -> dict[str, Any]:
        text: Any = {"content": delta.text} if self._chat else delta.text
        return self._chunk(text, self._logprobs_of([delta]), None)

    def last_chunk(self, text: str, reason: str) -> dict[str, Any]:
        """`text` is what had been held back."""
        content: Any = ({"content": text} if text else {}) if self._chat else text
        return self._chunk(content, None, reason)

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._chunk_head(), "choices": [], "usage": usage_object(usage)}

    def whole(self, text: str, deltas: list[TextDelta], reason: str, usage: Usage) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": self._logprobs_of(deltas), "finish_reason": reason}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind: Literal["chat.completion", "text_completion"] = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": usage_object(usage)}

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}

    def _chunk(self, text: Any, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta" if self._chat else "text": text,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        return {**self._chunk_head(), "choices": [choice]}

    def _logprobs_of(self, deltas: list[TextDelta]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        if self._chat:
            return {"content": [_chat_logprob(delta) for delta in deltas]}
        return {
            "tokens": [delta.text for delta in deltas],
            "token_logprobs": [delta.logprob for delta in deltas],
            "top_logprobs": [dict(delta.top_logprobs) for delta in deltas],
        }


def _chat_logprob(delta: TextDelta) -> dict[str, Any]:
    top = [_token_logprob(text, logprob) for text, logprob in delta.top_logprobs]
    return {**_token_logprob(delta.text, delta.logprob), "top_logprobs": top}


def _token_logprob(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def sse(value: Any) -> bytes:
    """One server-sent event that holds `value` as JSON."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


SSE_DONE: Final = b"data: [DONE]\n\n"


def sse_comment(text: str) -> bytes:
    """A line that every client skips: it keeps the connection, and whatever is between, alive."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"
