"""Reads the messages, the tools and the wished form of an answer, as OpenAI's chat has them.

Decides what a message may hold: texts, calls and their results; what the model thought in earlier turns is dropped.
What this server cannot read (an image, a tool that is no function) is a FieldError that names its place, because an
answer that silently ignores it would be a wrong one. Pure.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec

from exod.http.dialects.fields import FieldError
from exod.http.dialects.schema_check import check_schema
from exoengine.protocol import ChatMessage, Grammar, ToolCall, Tools

TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
DROPPED_PARTS: Final = frozenset({"thinking", "reasoning", "redacted_thinking", "reasoning_text", "summary_text"})

MAX_TOOLS: Final = 512
"""OpenAI allows 128; agents that gather the tools of several servers have more."""

NAME: Final = re.compile(r"[a-zA-Z0-9_.:/-]{1,128}")
"""OpenAI allows 64 letters, digits, _ and -; other servers' clients use dots, colons and slashes, too."""


ALLOWED_TOOLS: Final = "allowed_tools"

ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class Called(msgspec.Struct):
    function: CalledFunction
    id: str | None = None


class Message(msgspec.Struct):
    role: Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(ROLES)})]
    content: str | list[ContentPart] | None = None
    tool_calls: list[Called] | None = None
    function_call: CalledFunction | None = None
    """The older form of one call; its result is a message of the role `function`, with the function's name."""
    tool_call_id: str | None = None
    name: str | None = None


class Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    type: str = "function"
    function: Function | None = None


class NamedFunction(msgspec.Struct):
    name: str


class AllowedTool(msgspec.Struct):
    """Named as in chat completions, or as in responses."""

    type: str = "function"
    function: NamedFunction | None = None
    name: str | None = None


class AllowedTools(msgspec.Struct):
    mode: str | None = None
    tools: list[AllowedTool] | None = None


class ToolChoice(msgspec.Struct):
    """`mode` and `tools` are those of `allowed_tools` in responses; chat completions have them one level deeper."""

    type: str = "function"
    function: NamedFunction | None = None
    name: str | None = None
    allowed_tools: AllowedTools | None = None
    mode: str | None = None
    tools: list[AllowedTool] | None = None


class ToolPlaces(msgspec.Struct, frozen=True):
    """Where a dialect's body holds what may be refused; `{at}` stands for a tool's number."""

    name: str
    parameters: str
    choice: str


CHAT_PLACES: Final = ToolPlaces(
    "tools[{at}].function.name", "tools[{at}].function.parameters", "tool_choice.function.name"
)


class JsonSchema(msgspec.Struct):
    schema: dict[str, Any] | bool | None = None
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None


def read_messages(messages: list[Message], place: str = "messages") -> tuple[ChatMessage, ...]:
    return tuple(_message(message, f"{place}[{at}]") for at, message in enumerate(messages))


def _message(message: Message, place: str) -> ChatMessage:
    if message.role not in ROLES:
        raise FieldError(f"{place}.role", f"expected one of {', '.join(ROLES)}, not '{message.role[:40]}'")
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    calls = tuple(_called(call, at) for at, call in enumerate(message.tool_calls or ()))
    if message.function_call is not None and not calls:
        calls = (_called(Called(message.function_call, message.function_call.name), 0),)
    content = message.content
    if content is None and role in ("assistant", "tool"):  # a call says nothing, and a tool may return nothing
        content = ""
    text = read_content(content, f"{place}.content")
    return ChatMessage(role, text, calls if role == "assistant" else (), message.tool_call_id or message.name or "")


def _called(call: Called, at: int) -> ToolCall:
    arguments = call.function.arguments
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments or {}).decode()
    return ToolCall(call.id or f"call_{at}", call.function.name, arguments)


def read_content(content: str | list[ContentPart] | None, place: str) -> str:
    """A message's text, whole or in parts."""
    if isinstance(content, str):
        return content
    if content is None:
        raise FieldError(place, "a message needs a text")
    texts = []
    for at, part in enumerate(content):
        if part.type in DROPPED_PARTS:
            continue
        if part.type not in TEXT_PARTS:
            raise FieldError(
                f"{place}[{at}].type", f"only text is supported, not {part.type[:40]}", "unsupported_value"
            )
        text = part.refusal if part.type == "refusal" and part.text is None else part.text
        if text is None:
            raise FieldError(f"{place}[{at}].text", "is missing")
        texts.append(text)
    return "".join(texts)


def functions_of(tools: list[Tool] | None) -> list[Function]:
    return [_function(tool, f"tools[{at}]") for at, tool in enumerate(tools or ())]


def _function(tool: Tool, place: str) -> Function:
    if tool.type != "function":
        raise FieldError(f"{place}.type", f"only function is supported, not {tool.type[:40]}", "unsupported_value")
    if tool.function is None:
        raise FieldError(f"{place}.function", "is missing")
    return tool.function


def tools_of(
    functions: list[Function], choice: str | ToolChoice | None, parallel: bool | None, places: ToolPlaces, *,
    in_grammar: bool,
) -> Tools | None:  # fmt: skip
    """The tools as the model gets them; None where it must not call any. `in_grammar`: the answer follows a
    grammar, which then has to allow their calls.
    """
    if len(functions) > MAX_TOOLS:
        raise FieldError(places.name.partition("[")[0], f"expected at most {MAX_TOOLS}")
    for at, function in enumerate(functions):
        if not NAME.fullmatch(function.name):
            raise FieldError(places.name.format(at=at), "expected 1 to 128 letters, digits, or _ . : / -")
    wish, name = _choice(choice)
    numbers = {function.name: at for at, function in enumerate(functions)}
    functions = _allowed(functions, choice)
    if not functions:
        if wish in ("required", "named"):
            raise FieldError(places.choice.partition(".")[0], "there are no tools to choose from")
        return None
    if name and name not in [function.name for function in functions]:
        raise FieldError(places.choice, f"there is no tool called '{name[:64]}'")
    if wish == "none":
        return None
    if wish != "auto" or in_grammar:  # the call must follow them
        for function in functions:
            if function.parameters is not None and name in ("", function.name):
                text = msgspec.json.encode(function.parameters).decode()
                check_schema(function.parameters, text, places.parameters.format(at=numbers[function.name]))
    specs = [{"type": "function", "function": _spec(function)} for function in functions]
    text = msgspec.json.encode(specs).decode()
    return Tools(text, wish, name, parallel is not False)


def _spec(function: Function) -> dict[str, Any]:
    spec: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        spec["description"] = function.description
    spec["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return spec


def _choice(choice: str | ToolChoice | None) -> tuple[Any, str]:
    if choice is None:
        return "auto", ""
    if isinstance(choice, str):
        wish = {"any": "required"}.get(choice, choice)
        if wish not in ("auto", "none", "required"):
            raise FieldError("tool_choice", 'expected "auto", "none", "required", or a function')
        return wish, ""
    if choice.type == ALLOWED_TOOLS:
        place, allowed = _allowed_tools(choice)
        if allowed.mode not in ("auto", "required"):
            raise FieldError(f"{place}.mode", 'expected "auto" or "required"')
        return allowed.mode, ""
    if choice.type in ("auto", "none", "required", "any"):
        return {"any": "required"}.get(choice.type, choice.type), ""
    name = choice.function.name if choice.function is not None else choice.name
    if choice.type not in ("function", "tool") or not name:
        raise FieldError("tool_choice", "expected a function with its name")
    return "named", name


def _allowed_tools(choice: ToolChoice) -> tuple[str, AllowedTools]:
    """Where they stand in the body, and what they are."""
    if choice.allowed_tools is not None:
        return "tool_choice.allowed_tools", choice.allowed_tools
    return "tool_choice", AllowedTools(choice.mode, choice.tools)


def _allowed(functions: list[Function], choice: str | ToolChoice | None) -> list[Function]:
    """Those that may be called. The others are not told to the model, which then calls none of them."""
    if not isinstance(choice, ToolChoice) or choice.type != ALLOWED_TOOLS:
        return functions
    place, allowed = _allowed_tools(choice)
    if not allowed.tools:
        raise FieldError(f"{place}.tools", "expected at least one tool")
    names = set()
    for at, tool in enumerate(allowed.tools):
        name = tool.function.name if tool.function is not None else tool.name
        if tool.type != "function" or name not in [function.name for function in functions]:
            raise FieldError(f"{place}.tools[{at}]", f"there is no {tool.type[:40]} '{(name or '')[:64]}' in tools")
        names.add(name)
    return [function for function in functions if function.name in names]


def read_format(
    wished: ResponseFormat | None, place: str = "response_format", inside: str = ".json_schema"
) -> Grammar | None:
    """The grammar that an answer must follow; `inside` is where in `place` a schema stands. Raises FieldError,
    which names the part that cannot be met.
    """
    if wished is None or wished.type == "text":
        return None
    if wished.type == "json_object":
        if wished.schema is None:
            return Grammar("json_object")
        return grammar_of(wished.schema, f"{place}.schema")
    if wished.type != "json_schema":
        raise FieldError(f"{place}.type", 'expected "text", "json_object" or "json_schema"', "unsupported_value")
    inner = wished.json_schema
    if inner is None or inner.schema is None:
        raise FieldError(f"{place}{inside}.schema", "is missing")
    return grammar_of(inner.schema, f"{place}{inside}.schema")


def grammar_of(schema: dict[str, Any] | bool, place: str) -> Grammar:
    text = msgspec.json.encode(schema).decode()
    check_schema(schema, text, place)
    return Grammar("json_schema", text)
