"""`GET /openapi.json`: the API described for programs, built from the types that read the bodies.

Decides nothing: the dialects decide what a body may hold. Pure.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec

from exod import VERSION
from exod.http.dialects.anthropic import MessagesBody
from exod.http.dialects.openai_requests import ChatBody, CompletionBody
from exod.http.dialects.responses import ResponsesBody
from exod.http.text_routes import DetokenizeBody, TokenizeBody

BODIES: Final[dict[str, tuple[type[msgspec.Struct], str]]] = {
    "/v1/chat/completions": (ChatBody, "Answer a conversation (OpenAI's Chat Completions)"),
    "/v1/completions": (CompletionBody, "Continue a text (OpenAI's Completions)"),
    "/v1/responses": (ResponsesBody, "Answer a conversation (OpenAI's Responses)"),
    "/v1/messages": (MessagesBody, "Answer a conversation (Anthropic's Messages)"),
    "/v1/messages/count_tokens": (MessagesBody, "Count a conversation's tokens"),
    "/tokenize": (TokenizeBody, "The tokens of a text, or of a conversation"),
    "/detokenize": (DetokenizeBody, "The text of tokens"),
}

QUESTIONS: Final[dict[str, tuple[str, str]]] = {
    "/v1/models": ("The models that are served", "application/json"),
    "/v1/models/{name}": ("One model", "application/json"),
    "/health": ("Alive", "application/json"),
    "/ready": ("Would a request be served now?", "application/json"),
    "/metrics": ("Figures for Prometheus", "text/plain"),
    "/api/status": ("The cluster's status", "application/json"),
    "/api/events": ("Events, as server-sent events", "text/event-stream"),
    "/openapi.json": ("This description", "application/json"),
}

REFUSED: Final = ("400", "401", "403", "404", "405", "408", "413", "415", "429", "500", "503")


@functools.cache
def encoded() -> bytes:
    """As JSON, made once: to make it takes 7 ms."""
    return msgspec.json.encode(description())


def description() -> dict[str, Any]:
    shapes = list(dict.fromkeys(shape for shape, _ in BODIES.values()))
    schemas, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    references = dict(zip(shapes, schemas, strict=True))
    paths: dict[str, Any] = {
        path: {"post": _posted(references[shape], text, streams=path.startswith("/v1/") and "count" not in path)}
        for path, (shape, text) in BODIES.items()
    }
    paths |= {path: {"get": _asked(path, text, kind)} for path, (text, kind) in QUESTIONS.items()}
    paths["/v1/cancel/{name}"] = {"post": _asked("{name}", "End a request that is under way", "application/json")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "exod", "version": VERSION, "description": "A model served by a cluster of Macs."},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


ERROR: Final = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}


def _posted(reference: dict[str, Any], text: str, *, streams: bool) -> dict[str, Any]:
    kinds = ["application/json", *(["text/event-stream"] if streams else [])]
    return {
        "summary": text,
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}},
        "responses": _responses(kinds),
    }


def _asked(path: str, text: str, kind: str) -> dict[str, Any]:
    told: dict[str, Any] = {"summary": text, "responses": _responses([kind])}
    if "{name}" in path:
        told["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return told


def _responses(kinds: list[str]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refused = {status: {"description": "Refused, with the reason", "content": error} for status in REFUSED}
    return {"200": {"description": "The answer", "content": {kind: {} for kind in kinds}}, **refused}
