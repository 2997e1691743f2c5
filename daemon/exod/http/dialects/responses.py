"""OpenAI's Responses API: bodies of `/v1/responses` into generations, and answers as responses with output items.

Decides how much of earlier responses is kept, so that `previous_response_id` finds them: in memory; the least
recently used is dropped first. An unknown response id is refused with the name of the field. The model's reasoning
of earlier turns is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Any, Final

import msgspec

from exod.daemon_api.interface import DEFAULT_MODEL, GenerationEnd
from exod.errors import RequestError
from exod.http.dialects.ask import Ask, SamplingBody, Tokens, limit, new_id, read_sampling
from exod.http.dialects.blocks import Block, BlockAnswer, named_event
from exod.http.dialects.fields import FieldError, read_fields
from exod.http.dialects.messages import (
    ContentPart,
    Function,
    JsonSchema,
    ResponseFormat,
    ToolChoice,
    ToolPlaces,
    read_content,
    read_format,
    tools_of,
)
from exod.http.dialects.openai_answers import chat_logprobs, error_object
from exod.http.dialects.openai_requests import MAX_TOP_LOGPROBS, template_options
from exoengine.protocol import ChatMessage, GenerationRequest, ToolCall

MAX_KEPT: Final = 256
MAX_KEPT_CHARS: Final = 16 * 1024 * 1024
"""Of all conversations that are kept. Each holds its whole history."""


LOGPROBS: Final = "message.output_text.logprobs"
"""In `include`: what asks for log probabilities."""

PLACES: Final = ToolPlaces("tools[{at}].name", "tools[{at}].parameters", "tool_choice.name")


class Item(msgspec.Struct):
    """One of the input's items: a message, a call, a call's result, reasoning, or a reference to one of an earlier
    response.
    """

    type: str | None = None
    id: str | None = None
    role: str | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class FlatTool(msgspec.Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Format(msgspec.Struct):
    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct):
    format: Format | None = None


class Reasoning(msgspec.Struct):
    effort: str | None = None


class ResponsesBody(SamplingBody, kw_only=True):
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    tools: list[FlatTool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, Any] | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class KeptConversations:
    """The conversations of earlier responses, as far as this node keeps them, each with its answer's items."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._chars = 0

    def find(self, response_id: str) -> tuple[ChatMessage, ...]:
        """Raises FieldError where it is not known."""
        kept = self._kept.get(response_id)
        if kept is None:
            text = f"there is no response '{response_id[:80]}' here, or it is too long ago: send the whole input"
            raise FieldError("previous_response_id", text, "previous_response_not_found")
        self._kept.move_to_end(response_id)
        return kept.messages

    def item(self, item_id: str, place: str) -> tuple[ChatMessage, ...]:
        """An item of an answer, as a message; nothing for what a model thought. Raises FieldError where it is not
        known.
        """
        response_id = f"resp-{item_id.partition('_')[2].partition('_')[0]}"
        kept = self._kept.get(response_id)
        if kept is None or item_id not in kept.items:
            text = f"there is no item '{item_id[:80]}' here, or it is too long ago: send the item itself"
            raise FieldError(f"{place}.id", text, "item_not_found")
        self._kept.move_to_end(response_id)
        return kept.items[item_id]

    def keep(
        self, response_id: str, messages: tuple[ChatMessage, ...], items: dict[str, tuple[ChatMessage, ...]]
    ) -> None:
        self._kept[response_id] = kept = _Kept(messages, items)
        self._chars += kept.size
        while len(self._kept) > MAX_KEPT or (self._chars > MAX_KEPT_CHARS and self._kept):
            _, gone = self._kept.popitem(last=False)
            self._chars -= gone.size


class _Kept(msgspec.Struct, frozen=True):
    messages: tuple[ChatMessage, ...]
    items: dict[str, tuple[ChatMessage, ...]]

    @property
    def size(self) -> int:
        return _size(self.messages) + sum(64 + _size(messages) for messages in self.items.values())


def _size(messages: tuple[ChatMessage, ...]) -> int:
    return sum(len(one.content) + sum(len(call.arguments) for call in one.tool_calls) + 64 for one in messages)


class Responses:
    """The dialect, with what it keeps."""

    def __init__(self) -> None:
        self.kept = KeptConversations()

    def read(self, data: bytes) -> Ask:
        """Raises RequestError (FieldError where a field is to blame)."""
        body = read_fields(data, ResponsesBody)
        if body.background:
            raise FieldError("background", "only false is supported", "unsupported_value")
        if body.conversation is not None:
            problem = "conversations are not kept here by a name: send previous_response_id, or the whole input"
            raise FieldError("conversation", problem, "unsupported_value")
        if body.prompt is not None:
            problem = "no prompts are kept here: send the text in instructions and input"
            raise FieldError("prompt", problem, "unsupported_value")
        earlier = self.kept.find(body.previous_response_id) if body.previous_response_id else ()
        history = (*earlier, *self._messages(body.input))
        system = (ChatMessage("system", body.instructions),) if body.instructions else ()
        functions = [_function(tool, f"tools[{at}]") for at, tool in enumerate(body.tools or ())]
        grammar = read_format(_format(body), "text.format", inside="")
        choice, parallel = body.tool_choice, body.parallel_tool_calls
        request = GenerationRequest(
            request_id=new_id("resp"),
            max_tokens=limit(body.max_output_tokens),
            messages=(*system, *history),
            sampling=read_sampling(body, _logprobs(body)),
            tools=tools_of(functions, choice, parallel, PLACES, in_grammar=grammar is not None),
            template=template_options(body.reasoning.effort if body.reasoning else None, None, None),
            grammar=grammar,
        )
        if not history:
            raise FieldError("input", "expected a text or at least one item")
        extra = (body, history)
        return Ask(body.model or DEFAULT_MODEL, bool(body.stream), (request,), request.request_id, extra=extra)

    def answer(self, ask: Ask, model: str, created: int) -> ResponsesAnswer:
        return ResponsesAnswer(ask, model, created, self.kept)

    def _messages(self, given: str | list[Item]) -> tuple[ChatMessage, ...]:
        if isinstance(given, str):
            return (ChatMessage("user", given),)
        messages: list[ChatMessage] = []
        for at, item in enumerate(given):
            for message in self._message(item, f"input[{at}]"):
                last = messages[-1] if messages else None
                if last is not None and last.role == "assistant" and message.tool_calls:  # one turn of the model's
                    calls = (*last.tool_calls, *message.tool_calls)
                    messages[-1] = msgspec.structs.replace(last, tool_calls=calls)
                else:
                    messages.append(message)
        return tuple(messages)

    def _message(self, item: Item, place: str) -> tuple[ChatMessage, ...]:
        names_one = item.type == "item_reference" or (item.type is None and item.role is None)
        if names_one and item.id is not None:
            return self.kept.item(item.id, place)
        return _message(item, place)


def _logprobs(body: ResponsesBody) -> int:
    """How many of the likeliest tokens are told with each; -1: no log probabilities are."""
    wanted = LOGPROBS in (body.include or ()) or body.top_logprobs
    return body.top_logprobs or 0 if wanted else -1


def _format(body: ResponsesBody) -> ResponseFormat | None:
    wished = body.text.format if body.text is not None else None
    if wished is None:
        return None
    return ResponseFormat(wished.type, JsonSchema(wished.schema, wished.name, wished.strict))


def _function(tool: FlatTool, place: str) -> Function:
    if tool.type != "function":
        raise FieldError(f"{place}.type", f"only function is supported, not {tool.type[:40]}", "unsupported_value")
    if tool.name is None:
        raise FieldError(f"{place}.name", "is missing")
    return Function(tool.name, tool.description, tool.parameters)


def _message(item: Item, place: str) -> tuple[ChatMessage, ...]:
    match item.type or "message":
        case "message":
            if item.role not in ("system", "developer", "user", "assistant"):
                raise FieldError(f"{place}.role", 'expected "user", "assistant", "system" or "developer"')
            role = "system" if item.role == "developer" else item.role
            return (ChatMessage(role, read_content(item.content, f"{place}.content")),)
        case "function_call":
            call = ToolCall(item.call_id or "", item.name or "", item.arguments or "{}")
            return (ChatMessage("assistant", "", (call,)),)
        case "function_call_output":
            output = read_content(item.output, f"{place}.output")
            return (ChatMessage("tool", output, tool_call_id=item.call_id or ""),)
        case "reasoning":
            return ()
        case "item_reference":
            raise FieldError(f"{place}.id", "is missing")
        case kind:
            raise FieldError(f"{place}.type", f"{kind[:40]} is not supported", "unsupported_value")


class ResponsesAnswer(BlockAnswer):
    def __init__(self, ask: Ask, model: str, created: int, kept: KeptConversations) -> None:
        super().__init__(ask, model, created)
        self._kept = kept
        self._number = 0

    # --- events ---------------------------------------------------------------------------------------------

    def _event(self, kind: str, value: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        return named_event(kind, {"sequence_number": number, **value})

    def _at(self, block: Block, **more: Any) -> dict[str, Any]:
        return {"item_id": self._item_id(block), "output_index": block.index, **more}

    def begin(self) -> bytes:
        response = {"response": self._response("in_progress")}
        return self._event("response.created", response) + self._event("response.in_progress", response)

    def opened(self, block: Block) -> bytes:
        added = {"output_index": block.index, "item": self._item(block, "in_progress")}
        data = self._event("response.output_item.added", added)
        if block.kind == "said":
            part = _part(Block("said", 0))
            data += self._event("response.content_part.added", self._at(block, content_index=0, part=part))
        return data

    def more(self, block: Block, text: str) -> bytes:
        match block.kind:
            case "said":
                logprobs = chat_logprobs(self.choices[0].new_tokens)
                extra = {"content_index": 0, "delta": text, "logprobs": logprobs}
                return self._event("response.output_text.delta", self._at(block, **extra))
            case "thought":
                return self._event("response.reasoning_text.delta", self._at(block, content_index=0, delta=text))
            case "called":
                return self._event("response.function_call_arguments.delta", self._at(block, delta=text))

    def closed(self, block: Block) -> bytes:
        match block.kind:
            case "said":
                part = _part(block)
                done = self._at(block, content_index=0, text=part["text"], logprobs=part["logprobs"])
                data = self._event("response.output_text.done", done)
                data += self._event("response.content_part.done", self._at(block, content_index=0, part=part))
            case "thought":
                done = self._at(block, content_index=0, text=block.text)
                data = self._event("response.reasoning_text.done", done)
            case "called":
                done = self._at(block, name=block.name, arguments=block.text)
                data = self._event("response.function_call_arguments.done", done)
        item = {"output_index": block.index, "item": self._item(block, "completed")}
        return data + self._event("response.output_item.done", item)

    def finished(self, end: GenerationEnd) -> bytes:
        return b""

    def close(self) -> bytes:
        self._remember()
        status = self._status()
        return self._event(f"response.{status}", {"response": self._response(status)})

    def pause(self) -> bytes:
        return self._event("keepalive", {})

    def failed(self, error: RequestError) -> bytes:
        told = error_object(error)["error"]
        response = {**self._response("failed"), "error": {"code": told["code"], "message": told["message"]}}
        return self._event("response.failed", {"response": response})

    def whole(self) -> dict[str, Any]:
        self.gather()
        self._remember()
        return self._response(self._status())

    # --- shapes ---------------------------------------------------------------------------------------------

    def _status(self) -> str:
        end = self.choices[0].end
        return "incomplete" if end is not None and end.finish_reason == "length" else "completed"

    def _item_id(self, block: Block) -> str:
        kind = {"said": "msg", "thought": "rs", "called": "fc"}[block.kind]
        return f"{kind}_{self.ask.request_id.partition('-')[2]}_{block.index}"

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._item_id(block), "status": status}
        match block.kind:
            case "said":
                content = [_part(block)] if status != "in_progress" else []
                return {**item, "type": "message", "role": "assistant", "content": content}
            case "thought":
                parts = [{"type": "reasoning_text", "text": block.text}] if status != "in_progress" else []
                return {**item, "type": "reasoning", "summary": [], "content": parts}
            case "called":
                called = {"call_id": block.id, "name": block.name, "arguments": block.text}
                return {**item, "type": "function_call", **called}

    def _response(self, status: str) -> dict[str, Any]:
        body: ResponsesBody = self.ask.extra[0]
        request = self.ask.generations[0]
        ended = status in ("completed", "incomplete")
        return {
            "id": self.ask.request_id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": [self._item(block, "completed") for block in self.blocks] if ended else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "store": body.store is not False,
            "temperature": request.sampling.temperature,
            "text": {"format": _told(body)},
            "tool_choice": _told_choice(body),
            "tools": body.tools or [],
            "top_logprobs": max(request.sampling.logprobs, 0),
            "top_p": request.sampling.top_p,
            "truncation": "disabled",
            "usage": self._usage() if ended else None,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _remember(self) -> None:
        """Keeps the conversation with this answer."""
        body: ResponsesBody = self.ask.extra[0]
        if body.store is False:
            return
        history: tuple[ChatMessage, ...] = self.ask.extra[1]
        choice = self.choices[0]
        said = ChatMessage("assistant", choice.text, tuple(choice.calls))
        items = {self._item_id(block): _as_messages(block) for block in self.blocks}
        self._kept.keep(self.ask.request_id, (*history, said), items)


def _as_messages(block: Block) -> tuple[ChatMessage, ...]:
    """An item that is referred to later, as an item of the input would be read."""
    match block.kind:
        case "said":
            return (ChatMessage("assistant", block.text),)
        case "called":
            return (ChatMessage("assistant", "", (ToolCall(block.id, block.name, block.text),)),)
        case "thought":
            return ()


def _part(block: Block) -> dict[str, Any]:
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": chat_logprobs(block.tokens)}


def _told_choice(body: ResponsesBody) -> Any:
    """As it came, without the fields that the client left away."""
    return _without_nulls(msgspec.to_builtins(body.tool_choice or "auto"))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return value


def _told(body: ResponsesBody) -> Any:
    wished = body.text.format if body.text is not None else None
    return wished if wished is not None else {"type": "text"}
