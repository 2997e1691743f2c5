"""The calls in an answer: from the text between a model's markers to names and arguments.

mlx-lm's parsers read what a model wrote in its own form. A call in JSON is passed on while it is written: first the
name, then the arguments piece by piece. Decides: what is a call and what is only text. Everything depends on the
text alone, so each rank finds the same, after a fault too. No MLX.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from exoengine.protocol import CallDelta

JSON_HEAD: Final = re.compile(
    r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""The beginning of a call in JSON, up to its arguments."""

LONGEST_HEAD_CHARS: Final = 300
"""OpenAI's limit for a function's name is 64 characters; what has no name after so many is no call."""

Parser = Callable[[str, Any], Any]
"""mlx-lm's: the text between the markers and the tools, to a call or a list of them; raises where it is neither."""


class JsonArguments:
    """Follows one JSON object through pieces of text, to its end."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._escaped = False
        self.ended = False

    def take(self, text: str) -> str:
        """The part of `text` that belongs to the object."""
        for at, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped, self._in_text = char == "\\", char != '"'
            elif char == '"':
                self._in_text = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return text[: at + 1]
        return text


class CallReader:
    """The calls of one answer, in their order. `names` are those of the functions that there are."""

    def __init__(self, request_id: str, specs: str, parser: Parser | None) -> None:
        self._request_id = request_id
        self._specs: list[Any] = json.loads(specs)
        self._parser = parser
        self.names = [function_of(spec).get("name", "") for spec in self._specs]
        self.count = 0
        """How many calls were begun."""
        self._text = ""
        self._arguments: JsonArguments | None = None

    def feed(self, text: str) -> list[CallDelta]:
        """More of the text between the markers: what can be passed on of it already."""
        self._text += text
        if self._arguments is not None:
            return self._more(text)
        head = JSON_HEAD.match(self._text) if len(self._text) <= LONGEST_HEAD_CHARS + len(text) else None
        if head is None:
            return []
        name = _json_text(head["name"])
        if name not in self.names:
            return []
        self._arguments = JsonArguments()
        return [self._begin(name), *self._more(self._text[head.end() :])]

    @property
    def text(self) -> str:
        """What is between the markers so far."""
        return self._text

    @property
    def is_telling(self) -> bool:
        """Is a call under way of which the name was told?"""
        return self._arguments is not None

    @property
    def has_ended(self) -> bool:
        """Is it whole?"""
        return self._arguments is not None and self._arguments.ended

    def close(self) -> list[CallDelta] | None:
        """The end of the text between the markers; None where it was no call."""
        text, self._text = self._text, ""
        arguments, self._arguments = self._arguments, None
        if arguments is not None:
            return []
        calls = self._parsed(text)
        if calls is None:
            return None
        return [delta for name, given in calls for delta in (self._begin(name), self._last(given))]

    def drop(self) -> str:
        """Forgets the text: it is no call."""
        text, self._text = self._text, ""
        return text

    def _parsed(self, text: str) -> list[tuple[str, str]] | None:
        for parser in (self._parser, lambda text, _: json.loads(text)):
            if parser is None:
                continue
            try:
                found = parser(text, self._specs)
                calls = [_call(entry) for entry in (found if isinstance(found, list) else [found])]
            except Exception:  # mlx-lm's parsers raise anything, and give what is no JSON, for what a model made up
                continue
            if calls and all(call is not None for call in calls):
                return [call for call in calls if call is not None]
        return None

    def _begin(self, name: str) -> CallDelta:
        self.count += 1
        digest = hashlib.sha256(f"{self._request_id}:{self.count}".encode()).hexdigest()
        return CallDelta(self.count - 1, "", f"call_{digest[:24]}", name)

    def _last(self, arguments: str) -> CallDelta:
        return CallDelta(self.count - 1, arguments)

    def _more(self, text: str) -> list[CallDelta]:
        if self._arguments is None or self._arguments.ended:
            return []
        taken = self._arguments.take(text)
        return [CallDelta(self.count - 1, taken)] if taken else []


def function_of(spec: Any) -> dict[str, Any]:
    """The function's name, description and parameters, in whichever of the two common shapes."""
    function = spec.get("function", spec) if isinstance(spec, dict) else {}
    return function if isinstance(function, dict) else {}


def _call(entry: Any) -> tuple[str, str] | None:
    """(name, arguments as JSON text) of what a parser found."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    arguments = entry.get("arguments", entry.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    try:
        (entry["name"] + text).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no message can carry
        return None
    return entry["name"], text


def _json_text(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return ""


def as_text(calls: Sequence[Any]) -> str:
    """Earlier calls, for a model whose template knows none, in the form that it is asked to use."""
    return "\n".join(
        f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}\n</tool_call>'
        for call in calls
    )
