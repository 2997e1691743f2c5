"""Reads the bodies of `/v1/chat/completions` and `/v1/completions` into generations.

Decides what is allowed: every wrong value is a FieldError that names the field, and so is a request that cannot be
met (images, text before a suffix), because an answer that silently ignores it would be a wrong answer. Fields that
only other servers know are handled in `fields.py`. Pure.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from exod.daemon_api.interface import DEFAULT_MODEL, MAX_TOKENS_LIMIT
from exod.http.dialects.ask import (
    Ask,
    Choices,
    SamplingBody,
    Stops,
    Tokens,
    limit,
    new_id,
    read_sampling,
    read_stops,
    several,
)
from exod.http.dialects.fields import FieldError, read_fields
from exod.http.dialects.messages import (
    CHAT_PLACES,
    Function,
    Message,
    NamedFunction,
    ResponseFormat,
    Tool,
    ToolChoice,
    ToolPlaces,
    functions_of,
    grammar_of,
    read_format,
    read_messages,
    tools_of,
)
from exoengine.decoding import DecodingError, from_json
from exoengine.protocol import GenerationRequest, Tools

MAX_TOP_LOGPROBS: Final = 20
"""OpenAI's limit."""

MAX_TEMPLATE_CHARS: Final = 16 * 1024
"""Of `chat_template_kwargs`: switches and short texts."""


OLDER_CALLS: Final = "functions"
"""What an Ask says where tools came as `functions`: the answer then has its call as `function_call`."""

OLDER_PLACES: Final = ToolPlaces("functions[{at}].name", "functions[{at}].parameters", "function_call.name")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class SharedBody(SamplingBody, kw_only=True):
    stream_options: StreamOptions | None = None
    stop: Stops | None = None
    n: Choices | None = None


class ChatBody(SharedBody, kw_only=True):
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: str | NamedFunction | None = None
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | str | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    modalities: list[str] | None = None


class CompletionBody(SharedBody, kw_only=True):
    prompt: str | list[Any]
    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS_LIMIT)] | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    guided_json: dict[str, Any] | str | None = None
    response_format: ResponseFormat | None = None


def read_chat(data: bytes) -> Ask:
    """Raises RequestError (FieldError where a field is to blame)."""
    body = read_fields(data, ChatBody)
    if body.modalities is not None and body.modalities != ["text"]:
        raise FieldError("modalities", 'only ["text"] is supported', "unsupported_value")
    if body.top_logprobs and not body.logprobs:
        raise FieldError("top_logprobs", "needs logprobs = true")
    messages = read_messages(body.messages)
    continues = bool(body.continue_final_message) or body.add_generation_prompt is False
    if continues and messages[-1].role != "assistant":
        raise FieldError("continue_final_message", "the last message is not the assistant's")
    grammar = _grammar(body)
    tools = _tools(body, in_grammar=grammar is not None)
    request = GenerationRequest(
        request_id=new_id("chatcmpl"),
        max_tokens=limit(body.max_completion_tokens, body.max_tokens),
        messages=messages,
        stop=read_stops(body.stop),
        sampling=read_sampling(body, (body.top_logprobs or 0) if body.logprobs else -1),
        tools=tools,
        template=template_options(body.reasoning_effort, body.enable_thinking, body.chat_template_kwargs),
        continues=continues,
        grammar=grammar,
    )
    ask = _ask(body, request, several(request, (None,), body.n or 1))
    return msgspec.structs.replace(ask, extra=OLDER_CALLS) if body.functions else ask


def _tools(body: ChatBody, *, in_grammar: bool) -> Tools | None:
    if not body.functions:
        if isinstance(body.function_call, NamedFunction):
            raise FieldError("function_call", "needs functions; beside tools it is called tool_choice")
        functions = functions_of(body.tools)
        return tools_of(functions, body.tool_choice, body.parallel_tool_calls, CHAT_PLACES, in_grammar=in_grammar)
    if body.tools:
        raise FieldError("functions", "are the older form of tools: send one of the two")
    choice: str | ToolChoice | None = None
    if isinstance(body.function_call, NamedFunction):
        choice = ToolChoice(name=body.function_call.name)
    elif body.function_call not in (None, "auto", "none"):
        raise FieldError("function_call", 'expected "auto", "none", or a function')
    else:
        choice = body.function_call
    return tools_of(body.functions, choice, False, OLDER_PLACES, in_grammar=in_grammar)


def template_options(effort: str | None, thinks: bool | None, more: dict[str, Any] | None) -> str:
    """What the model's template gets beside the messages, as JSON."""
    options: dict[str, Any] = {}
    if effort is not None:
        options["reasoning_effort"] = effort
        if effort == "none":
            options["enable_thinking"] = False
    if thinks is not None:
        options["enable_thinking"] = thinks
    text = msgspec.json.encode({**options, **(more or {})}).decode()
    if len(text) > MAX_TEMPLATE_CHARS:
        raise FieldError("chat_template_kwargs", f"expected at most {MAX_TEMPLATE_CHARS} characters")
    return text


def read_completion(data: bytes) -> Ask:
    """Raises RequestError (FieldError where a field is to blame)."""
    body = read_fields(data, CompletionBody)
    if body.suffix:
        raise FieldError("suffix", "text before a suffix is not supported", "unsupported_value")
    n = body.n or 1
    if body.best_of not in (None, n):
        raise FieldError("best_of", "only as many as n are made", "unsupported_value")
    # Some clients give this older field the chat's type: true means the drawn tokens only.
    logprobs = (
        -1 if body.logprobs is None or body.logprobs is False else int(body.logprobs is not True and body.logprobs)
    )
    most = limit(body.max_completion_tokens, body.max_tokens)
    if most == 0 and not body.echo:
        raise FieldError("max_tokens", "expected int >= 1; 0 only with echo")
    prompts = read_prompts(body.prompt)
    scores = bool(body.echo) and (logprobs >= 0 or most == 0 or not all(isinstance(one, str) for one in prompts))
    request = GenerationRequest(
        request_id=new_id("cmpl"),
        max_tokens=most,
        stop=read_stops(body.stop),
        sampling=read_sampling(body, logprobs),
        grammar=_grammar(body),
        scores_prompt=scores,
    )
    generations = several(request, prompts, n)
    ask = _ask(body, request, generations)
    if not body.echo or scores:
        return ask
    return msgspec.structs.replace(ask, echoes=tuple(str(one.prompt) for one in generations))


def _grammar(body: ChatBody | CompletionBody) -> Any:
    if body.response_format is not None or body.guided_json is None:
        return read_format(body.response_format)
    schema = body.guided_json
    if isinstance(schema, str):
        try:
            schema = from_json(schema.encode(), dict[str, Any])
        except DecodingError:
            raise FieldError("guided_json", "expected a JSON schema") from None
    return grammar_of(schema, "guided_json")


def read_prompts(prompt: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    """A text, a list of token ids, or a list of several of either."""
    match prompt:
        case str():
            return (prompt,)
        case [_, *_] if _are_tokens(prompt):
            return (tuple(prompt),)
        case [_, *_] if all(isinstance(one, str) for one in prompt):
            return tuple(prompt)
        case [_, *_] if all(isinstance(one, list) and _are_tokens(one) for one in prompt):
            return tuple(tuple(one) for one in prompt)
    raise FieldError("prompt", "expected a text, or a list of token ids that are 0 or more, or several of either")


def _are_tokens(items: list[Any]) -> bool:
    return bool(items) and all(type(item) is int and 0 <= item < 2**31 for item in items)


def _ask(body: SharedBody, request: GenerationRequest, generations: tuple[GenerationRequest, ...]) -> Ask:
    options = body.stream_options
    return Ask(
        model=body.model or DEFAULT_MODEL,
        stream=bool(body.stream),
        generations=generations,
        request_id=request.request_id,
        include_usage=bool(options and options.include_usage),
    )
