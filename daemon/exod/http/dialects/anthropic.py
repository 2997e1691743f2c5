"""Anthropic's Messages API: bodies of `/v1/messages` into generations, and answers as messages of blocks.

Decides only shapes. Blocks of earlier thinking are dropped; a result of a tool becomes a turn of its own. What this
server cannot read is a FieldError that names its place.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from exod.daemon_api.interface import DEFAULT_MODEL, GenerationEnd
from exod.errors import RequestError
from exod.http.dialects.ask import Ask, SamplingBody, Stop, Tokens, limit, new_id, read_sampling
from exod.http.dialects.blocks import Block, BlockAnswer, named_event
from exod.http.dialects.fields import FieldError, read_fields
from exod.http.dialects.messages import DROPPED_PARTS, Function, ToolChoice, ToolPlaces, grammar_of, tools_of
from exod.http.dialects.openai_answers import status_of
from exod.http.dialects.openai_requests import template_options
from exoengine.decoding import DecodingError, from_json
from exoengine.protocol import ChatMessage, GenerationRequest, Grammar, ToolCall

MAX_STOP_SEQUENCES: Final = 16

PLACES: Final = ToolPlaces("tools[{at}].name", "tools[{at}].input_schema", "tool_choice.name")

THINKS: Final = {"enabled": True, "adaptive": True, "disabled": False}

ERROR_KINDS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ContentBlock(msgspec.Struct):
    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    content: Any = None
    source: Any = None
    title: str | None = None
    context: str | None = None


class Turn(msgspec.Struct):
    role: str
    content: str | list[ContentBlock]


class AnthropicTool(msgspec.Struct):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ClaudeToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    type: str


class OutputFormat(msgspec.Struct):
    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: OutputFormat | None = None


class MessagesBody(SamplingBody, kw_only=True):
    messages: Annotated[list[Turn], msgspec.Meta(min_length=1)]
    max_tokens: Tokens | None = None
    system: str | list[ContentBlock] | None = None
    stop_sequences: Annotated[list[Stop], msgspec.Meta(max_length=MAX_STOP_SEQUENCES)] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: ClaudeToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    mcp_servers: list[Any] | None = None


def read_anthropic(data: bytes) -> Ask:
    """Raises RequestError (FieldError where a field is to blame)."""
    body = read_fields(data, MessagesBody)
    messages = [ChatMessage("system", _text(body.system, "system"))] if body.system else []
    for at, turn in enumerate(body.messages):
        messages += _turns(turn, f"messages[{at}]")
    choice = body.tool_choice or ClaudeToolChoice("auto")
    functions = [_function(tool, f"tools[{at}]") for at, tool in enumerate(body.tools or ())]
    config = body.output_config or OutputConfig()
    wished = body.output_format or config.format
    place = "output_format" if body.output_format else "output_config.format"
    grammar = _grammar(wished, place) if wished else None
    wish, parallel = ToolChoice(choice.type, name=choice.name), not choice.disable_parallel_tool_use
    if body.mcp_servers:
        raise FieldError(
            "mcp_servers", "this server calls no tools itself: send them as tools", "unsupported_value"
        )
    if body.thinking is not None and body.thinking.type not in THINKS:
        raise FieldError("thinking.type", f"expected one of {', '.join(THINKS)}")
    thinks = THINKS[body.thinking.type] if body.thinking is not None else None
    request = GenerationRequest(
        request_id=new_id("msg"),
        max_tokens=limit(body.max_tokens),
        messages=tuple(messages),
        stop=tuple(body.stop_sequences or ()),
        sampling=read_sampling(body),
        tools=tools_of(functions, wish, parallel, PLACES, in_grammar=grammar is not None),
        template=template_options(config.effort, thinks, None),
        continues=body.messages[-1].role == "assistant",
        grammar=grammar,
    )
    return Ask(body.model or DEFAULT_MODEL, bool(body.stream), (request,), request.request_id)


def _grammar(wished: OutputFormat, place: str) -> Grammar:
    if wished.type != "json_schema":
        raise FieldError(
            f"{place}.type", f"only json_schema is supported, not {wished.type[:40]}", "unsupported_value"
        )
    if wished.schema is None:
        raise FieldError(f"{place}.schema", "is missing")
    return grammar_of(wished.schema, f"{place}.schema")


def _function(tool: AnthropicTool, place: str) -> Function:
    if tool.type not in (None, "custom"):
        raise FieldError(f"{place}.type", f"only custom is supported, not {tool.type[:40]}", "unsupported_value")
    return Function(tool.name, tool.description, tool.input_schema)


def _turns(turn: Turn, place: str) -> list[ChatMessage]:
    """A turn as one message or, where it holds results of tools, several."""
    if turn.role not in ("user", "assistant", "system"):
        raise FieldError(f"{place}.role", 'expected "user" or "assistant"')
    if isinstance(turn.content, str):
        return [ChatMessage(turn.role, turn.content)]
    results = [
        ChatMessage("tool", _result(block, f"{place}.content[{at}]"), tool_call_id=block.tool_use_id or "")
        for at, block in enumerate(turn.content)
        if block.type == "tool_result"
    ]
    calls = tuple(
        ToolCall(block.id or "", block.name or "", msgspec.json.encode(block.input or {}).decode())
        for block in turn.content
        if block.type == "tool_use"
    )
    others = [block for block in turn.content if block.type not in ("tool_result", "tool_use")]
    text = _text(others, f"{place}.content")
    if text or calls or not results:
        results.append(ChatMessage(turn.role, text, calls))
    return results


def _text(blocks: str | list[ContentBlock] | None, place: str) -> str:
    if isinstance(blocks, str):
        return blocks
    texts = []
    for at, block in enumerate(blocks or ()):
        if block.type in DROPPED_PARTS:
            continue
        texts.append(_block_text(block, f"{place}[{at}]"))
    return "\n".join(texts)


def _block_text(block: ContentBlock, place: str) -> str:
    if block.type == "text" and block.text is not None:
        return block.text
    if block.type == "document":
        return _told_document(block.title, block.context, _document(block.source, f"{place}.source"))
    if block.type == "search_result":
        named = [block.title, block.source if isinstance(block.source, str) else None]
        return _told_document(" ".join(filter(None, named)), None, _inner(block.content, f"{place}.content"))
    raise FieldError(f"{place}.type", f"only text is supported, not {block.type[:40]}", "unsupported_value")


def _document(source: Any, place: str) -> str:
    match source:
        case {"type": "text", "data": str(text)}:
            return text
        case {"type": "content", "content": content}:
            return _inner(content, f"{place}.content")
        case {"type": str(kind)}:
            problem = f"only documents of text are read (text, content), not {kind[:40]}"
            raise FieldError(f"{place}.type", problem, "unsupported_value")
    raise FieldError(place, "expected a document of the type text or content")


def _told_document(title: str | None, context: str | None, text: str) -> str:
    """As Anthropic advises to write documents into a prompt, so that a model tells them from what is asked."""
    lines = ["<document>"]
    if title:
        lines.append(f"<source>{title}</source>")
    if context:
        lines.append(f"<context>{context}</context>")
    return "\n".join([*lines, "<document_content>", text, "</document_content>", "</document>"])


def _result(block: ContentBlock, place: str) -> str:
    return _inner(block.content, f"{place}.content")


def _inner(content: Any, place: str) -> str:
    """What stands inside a block."""
    if content is None or isinstance(content, str):
        return content or ""
    try:
        parts = msgspec.convert(content, list[ContentBlock])
    except msgspec.ValidationError:
        raise FieldError(place, "expected a text or a list of blocks") from None
    return _text(parts, place)


def anthropic_error(error: RequestError) -> dict[str, Any]:
    status = status_of(error)
    kind = ERROR_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.text, "code": error.code}}


class AnthropicAnswer(BlockAnswer):
    def begin(self) -> bytes:
        usage = {"input_tokens": 0, "output_tokens": 0}
        return named_event("message_start", {"message": {**self._head(), "content": [], "usage": usage}})

    def _head(self, reason: str | None = None, stop: str | None = None) -> dict[str, Any]:
        head = {"id": self.ask.request_id, "type": "message", "role": "assistant", "model": self.model}
        return {**head, "stop_reason": reason, "stop_sequence": stop}

    def opened(self, block: Block) -> bytes:
        blocks: dict[str, dict[str, Any]] = {
            "said": {"type": "text", "text": ""},
            "thought": {"type": "thinking", "thinking": "", "signature": ""},
            "called": {"type": "tool_use", "id": block.id, "name": block.name, "input": {}},
        }
        return named_event("content_block_start", {"index": block.index, "content_block": blocks[block.kind]})

    def more(self, block: Block, text: str) -> bytes:
        delta = {
            "said": {"type": "text_delta", "text": text},
            "thought": {"type": "thinking_delta", "thinking": text},
            "called": {"type": "input_json_delta", "partial_json": text},
        }[block.kind]
        return named_event("content_block_delta", {"index": block.index, "delta": delta})

    def closed(self, block: Block) -> bytes:
        return named_event("content_block_stop", {"index": block.index})

    def finished(self, end: GenerationEnd) -> bytes:
        delta = {"stop_reason": self._reason(), "stop_sequence": end.stop_string or None}
        return named_event("message_delta", {"delta": delta, "usage": self._usage()})

    def close(self) -> bytes:
        return named_event("message_stop", {})

    def pause(self) -> bytes:
        return named_event("ping", {})

    def failed(self, error: RequestError) -> bytes:
        return named_event("error", anthropic_error(error))

    def whole(self) -> dict[str, Any]:
        self.gather()
        end = self.choices[0].end
        stop = end.stop_string if end is not None else ""
        content = [_content(block) for block in self.blocks]
        return {**self._head(self._reason(), stop or None), "content": content, "usage": self._usage()}

    def _reason(self) -> str:
        end = self.choices[0].end
        assert end is not None
        if end.finish_reason == "length":
            return "max_tokens"
        if self.choices[0].calls:
            return "tool_use"
        return "stop_sequence" if end.stop_string else "end_turn"

    def _usage(self) -> dict[str, int]:
        usage = self.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "said":
        return {"type": "text", "text": block.text}
    if block.kind == "thought":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    try:
        given: Any = from_json(block.text.encode(), dict[str, Any])
    except DecodingError:  # cut by the limit, or a model's mistake
        given = {}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": given}
