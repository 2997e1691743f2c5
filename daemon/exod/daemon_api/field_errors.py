"""Turns a msgspec validation error into (field, what is wrong with it), as a text for the sender of the value.

msgspec writes "Expected `int`, got `str` - at `$.messages[0].content`"; people are told the field first. Pure.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

LONGEST_TEXT: Final = 400
"""The longest path through the fields of a request, with a few words about what is wrong there."""

_PLACE: Final = re.compile(r" - at (?P<key>`key` in )?`\$\.?(?P<field>[^`]*)`$")
_MISSING: Final = re.compile(r"Object missing required field `(?P<field>[^`]+)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<field>[^`]+)`")


def field_problem(error: msgspec.ValidationError) -> tuple[str, str]:
    """("messages[0].role", "expected one of …"); the field is empty where the whole value is wrong."""
    text = str(error)
    if len(text) > LONGEST_TEXT:  # it repeats names and values of the sender
        text = f"{text[:LONGEST_TEXT]}…"
    place = _PLACE.search(text)
    field = place["field"].removesuffix("[...]") if place else ""
    problem = text[: place.start()] if place else text
    for pattern, words in ((_MISSING, "is missing"), (_UNKNOWN, "there is no such field")):
        match = pattern.fullmatch(problem)
        if match:
            name = match["field"]
            return (f"{field}.{name}" if field else name), words
    problem = problem.replace("`", "")
    problem = problem[:1].lower() + problem[1:]
    return field, f"a key: {problem}" if place and place["key"] else problem
