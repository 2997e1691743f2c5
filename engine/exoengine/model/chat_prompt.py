"""Messages to the text of a prompt, by the model's own chat template.

Decides: what a template is given, and what is done where it refuses it. System messages in the midst of a
conversation go to the front, then into the first user message, then turns of the same role become one; tools, calls
and their results become text where the template knows none. What a model thought in earlier turns is never given to
it again. And which text cannot fit the context, a client's or a template's: as soon as a part of it has too many
tokens, before the rest is read. No MLX. Raises PromptError.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from exoengine.model.tool_calls import as_text, function_of
from exoengine.protocol import ChatMessage, GenerationRequest, Tools
from exoengine.typed_text import TypedText

RESERVED: Final = frozenset(
    {"messages", "conversation", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt"}
    | {"continue_final_message", "return_dict", "return_tensors", "padding", "truncation", "max_length"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs"}
)
"""What the server itself says to a template, and what would change more than the text."""

FOLDED_TOOLS: Final = (
    "You can call functions. These are the functions, each as JSON:\n{specs}\n"
    "To call one, answer with nothing but\n"
    '<tool_call>\n{{"name": <function name>, "arguments": <JSON object>}}\n</tool_call>'
)

SLICE_CHARS: Final = 32 * 1024
"""Texts that may be too long are looked at in slices first; each takes some tens of milliseconds."""

SEAM_TOKENS: Final = 8
"""By so many tokens a cut may raise the count: the longest runs that tokens join across it."""

Encode = Callable[[str], Sequence[int]]
Message = dict[str, Any]
Change = Callable[[list[Message]], list[Message]]


class PromptError(Exception):
    """This prompt cannot be made into tokens; `code` is stable, `str(error)` is one line for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def too_long(tokens: int, max_context_tokens: int, about: str = "") -> str:
    return (
        f"the prompt has {about}{tokens} tokens; with room for an answer at most {max_context_tokens - 1} of the"
        f" context of {max_context_tokens} are allowed"
    )


def refuse_too_long(texts: Sequence[str], encode: Encode, max_context_tokens: int) -> None:
    """Raises PromptError as soon as a part of the texts has more tokens than the context."""
    if count := at_least(texts, encode, max_context_tokens):
        raise PromptError("context_length_exceeded", too_long(count, max_context_tokens, "at least "))


def at_least(texts: Sequence[str], encode: Encode, limit: int) -> int:
    """How many tokens these texts have at the least, as soon as that is `limit`, before the rest is read; 0 where
    it may be fewer.
    """
    if sum(len(text) for text in texts) <= max(limit, SLICE_CHARS):
        return 0
    count = 0
    for text in texts:
        for start in range(0, len(text), SLICE_CHARS):
            part = encode(text[start : start + SLICE_CHARS])
            count += max(0, len(part) - SEAM_TOKENS)
            if count >= limit:
                return count
    return 0


@dataclasses.dataclass(frozen=True)
class ChatPrompt:
    text: str
    mark: str
    """What stands in each control token's name that a client typed (typed_text.py); empty where none did."""
    thinks: bool
    """Does it end by opening the model's reasoning?"""


def chat_prompt(wrapped: Any, request: GenerationRequest, typed: TypedText) -> ChatPrompt:
    """`wrapped` is mlx-lm's tokenizer, `typed` reads what clients type for it. Raises PromptError."""
    if not wrapped.has_chat_template:
        raise PromptError("no_chat_template", "this model has no chat template: use a completion instead")
    mark, text = _render(wrapped, request, typed)
    ending = text.rstrip()
    return ChatPrompt(text, mark, bool(wrapped.has_thinking) and ending.endswith(str(wrapped.think_start).rstrip()))


def _render(wrapped: Any, request: GenerationRequest, typed: TypedText) -> tuple[str, str]:
    """The mark and the text, by the first of the ways that the template does not refuse; else its first refusal is
    raised.
    """
    given = request.messages or ()
    native = takes_tools(wrapped)
    options = _options(request, native)
    ways: list[Change] = [_as_is, _system_first, _system_in_user]
    ways += [lambda messages: _joined(_system_first(messages)), lambda messages: _joined(_system_in_user(messages))]
    refusal: Exception | None = None
    has_tools = request.tools is not None or any(one.role == "tool" or one.tool_calls for one in given)
    for folds in _folding(native, has_tools):
        plain = [_message(message, wrapped.think_end, folds) for message in given]
        if folds and request.tools is not None:
            plain.insert(0, {"role": "system", "content": _folded(request.tools)})
            options.pop("tools", None)
            changes = ways[1:]
        else:
            changes = ways
        for change in changes:
            try:
                messages = _joined(change(plain)) if folds else change(plain)
                mark = typed.mark_for((messages, options))
                marked = typed.marked(options, mark)
                text = wrapped.apply_chat_template(typed.marked(messages, mark), tokenize=False, **marked)
                return mark, str(text)
            except Exception as error:  # a template raises what its author chose, e.g. for roles it does not know
                refusal = refusal or error
    first_line = str(refusal).strip().partition("\n")[0]
    raise PromptError("bad_messages", f"the chat template refuses these messages: {first_line}") from refusal


def _folding(native: bool, has_tools: bool) -> tuple[bool, ...]:
    """Whether tools become text: first as the template seems to want it."""
    if not has_tools:
        return (False,)
    return (False, True) if native else (True,)


def _options(request: GenerationRequest, native: bool) -> dict[str, Any]:
    options: dict[str, Any] = json.loads(request.template)
    reserved = next((name for name in options if name in RESERVED), None)
    if reserved is not None:
        raise PromptError("bad_messages", f"chat_template_kwargs.{reserved}: the server says this to the template")
    if request.tools is not None and native:
        options["tools"] = json.loads(request.tools.specs)
    if request.continues:
        return {**options, "add_generation_prompt": False, "continue_final_message": True}
    return {**options, "add_generation_prompt": True}


def takes_tools(wrapped: Any) -> bool:
    """Does the template speak of tools? One that is a program (mlx-lm has some) does."""
    template = wrapped.chat_template
    if isinstance(template, dict):
        template = "\n".join(str(text) for text in template.values())
    return not isinstance(template, str) or "tools" in template


def _message(message: ChatMessage, think_end: str | None, folds: bool) -> Message:
    content = message.content
    if message.role == "assistant" and think_end and think_end in content:
        content = content.rpartition(think_end)[2].lstrip("\n")
    if folds and message.role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if folds and message.tool_calls:
        return {"role": "assistant", "content": "\n".join(filter(None, [content, as_text(message.tool_calls)]))}
    plain: Message = {"role": message.role, "content": content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _arguments(call: Any) -> Any:
    """As an object, which is what templates write out; a text that is no JSON as it is."""
    try:
        return json.loads(call.arguments or "{}")
    except ValueError:
        return call.arguments


def _folded(tools: Tools) -> str:
    functions = [function_of(spec) for spec in json.loads(tools.specs)]
    return FOLDED_TOOLS.format(specs="\n".join(json.dumps(function, ensure_ascii=False) for function in functions))


def _as_is(messages: list[Message]) -> list[Message]:
    return messages


def _system_first(messages: list[Message]) -> list[Message]:
    """All system messages as one at the front."""
    system, others = _apart(messages)
    return [{"role": "system", "content": system}, *others] if system else others


def _system_in_user(messages: list[Message]) -> list[Message]:
    """Before what the user says first, for templates that know no such role."""
    system, others = _apart(messages)
    at = next((at for at, message in enumerate(others) if message["role"] == "user"), None)
    if not system or at is None:
        return others
    first = {**others[at], "content": f"{system}\n\n{others[at]['content']}"}
    return [*others[:at], first, *others[at + 1 :]]


def _apart(messages: list[Message]) -> tuple[str, list[Message]]:
    system = [str(message["content"]) for message in messages if message["role"] == "system"]
    return "\n\n".join(filter(None, system)), [message for message in messages if message["role"] != "system"]


def _joined(messages: list[Message]) -> list[Message]:
    """Neighbours of the same role as one, because many templates want them to alternate. What has a call or is the
    result of one stays by itself.
    """
    joined: list[Message] = []
    for (role, is_text), turns in itertools.groupby(messages, key=lambda one: (one["role"], _is_text(one))):
        if is_text:
            joined.append({"role": role, "content": "\n".join(str(turn["content"]) for turn in turns)})
        else:
            joined += turns
    return joined


def _is_text(message: Message) -> bool:
    return message["role"] != "tool" and "tool_calls" not in message
