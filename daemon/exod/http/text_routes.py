"""`/tokenize`, `/detokenize` and `/v1/messages/count_tokens`: a text by the loaded model's tokenizer.

Decides only shapes: those of llama.cpp's and of vLLM's server together, because clients know one or the other.
Nothing is generated, and no generation waits for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from exod.daemon_api.interface import DEFAULT_MODEL, DaemonCommands
from exod.daemon_api.resolve_names import check_model
from exod.errors import ExitCode, RequestError
from exod.http.body import BodyReader
from exod.http.dialects.anthropic import anthropic_error, read_anthropic
from exod.http.dialects.ask import new_id
from exod.http.dialects.fields import FieldError, read_fields
from exod.http.dialects.messages import Message, read_messages
from exod.http.dialects.openai_answers import error_object, token_name
from exod.http.exchange import ClientGoneError, Reply, headers_of
from exoengine.protocol import GenerationRequest, TextAsked

_log = structlog.get_logger("http_texts")

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class TokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: list[TokenId]
    model: str | None = None


Ask = Callable[[bytes], tuple[str, TextAsked]]
"""Reads a body into the model's name and what is asked of its tokenizer."""


def tokenize_asked(data: bytes) -> tuple[str, TextAsked]:
    body = read_fields(data, TokenizeBody)
    model = body.model or DEFAULT_MODEL
    if body.messages:
        request = GenerationRequest(new_id("tokenize"), 1, messages=read_messages(body.messages))
        return model, TextAsked("", request)
    text = body.content if body.content is not None else body.prompt
    if text is None:
        raise FieldError("prompt", "expected a text in prompt or content, or messages")
    wish = body.add_special if body.add_special is not None else body.add_special_tokens
    # Each of the two servers has its own default, and its own field for the text.
    control = wish if wish is not None else body.content is None
    wants_pieces = bool(body.with_pieces or body.return_token_strs)
    return model, TextAsked("", text=text, control=control, wants_pieces=wants_pieces)


def detokenize_asked(data: bytes) -> tuple[str, TextAsked]:
    body = read_fields(data, DetokenizeBody)
    return body.model or DEFAULT_MODEL, TextAsked("", tokens=tuple(body.tokens))


def count_asked(data: bytes) -> tuple[str, TextAsked]:
    ask = read_anthropic(data)
    return ask.model, TextAsked("", ask.generations[0])


class TextEndpoint:
    """One of the three endpoints."""

    def __init__(
        self,
        commands: DaemonCommands,
        bodies: BodyReader,
        read: Ask,
        answer: Callable[[DaemonCommands, TextAsked], Awaitable[dict[str, Any]]],
        error_shape: Callable[[RequestError], dict[str, Any]] = error_object,
    ) -> None:
        self._commands, self._bodies, self._read, self._answer = commands, bodies, read, answer
        self._error_shape = error_shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send, self._error_shape)
        try:
            model, asked = await self._bodies.read(headers_of(scope), receive, self._read)
            check_model(model, self._commands)
            await reply.finish(msgspec.json.encode(await self._answer(self._commands, asked)))
        except ClientGoneError:
            return
        except RequestError as error:
            await reply.fail(error)
        except Exception as error:  # a fault of this daemon: the client gets one line, the log the traceback
            _log.exception("text_request_failed")
            text = f"an internal error of exod ({type(error).__name__}); its log has the details"
            await reply.fail(RequestError("internal_error", text, ExitCode.INTERNAL))


async def tokenized(commands: DaemonCommands, asked: TextAsked) -> dict[str, Any]:
    answer = await commands.text(asked)
    names = [token_name(piece) for piece in answer.pieces]
    told: dict[str, Any] = {"tokens": list(answer.tokens), "count": len(answer.tokens)}
    context = commands.engine().max_context_tokens
    if context:
        told["max_model_len"] = context
    if asked.wants_pieces:
        told["token_strs"] = names
        told["pieces"] = [{"id": token, "piece": name} for token, name in zip(answer.tokens, names, strict=True)]
    return told


async def detokenized(commands: DaemonCommands, asked: TextAsked) -> dict[str, Any]:
    text = (await commands.text(asked)).text if asked.tokens else ""
    return {"content": text, "prompt": text}


async def counted(commands: DaemonCommands, asked: TextAsked) -> dict[str, Any]:
    return {"input_tokens": len((await commands.text(asked)).tokens)}


def text_endpoints(commands: DaemonCommands, bodies: BodyReader) -> dict[str, TextEndpoint]:
    """By their paths."""
    return {
        "/tokenize": TextEndpoint(commands, bodies, tokenize_asked, tokenized),
        "/detokenize": TextEndpoint(commands, bodies, detokenize_asked, detokenized),
        "/v1/messages/count_tokens": TextEndpoint(commands, bodies, count_asked, counted, anthropic_error),
    }
