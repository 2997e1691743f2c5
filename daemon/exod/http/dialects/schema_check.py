"""Can a JSON schema be followed? Checked before anything is queued, so that a bad one is refused at once.

llguidance compiles it, as the engine will, but without a vocabulary. Its errors tell what is wrong but not where,
so this module searches for the smallest part of the schema that it refuses. Raises FieldError.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from exod.http.dialects.fields import FieldError

MAX_SCHEMA_CHARS: Final = 128 * 1024
"""Compiling takes time and memory with the size; the largest schemas in use have some 50,000 characters."""

MAX_TRIES: Final = 200
"""Parts that are compiled to find the one that is wrong, before the whole schema is named instead."""

DEFINITIONS: Final = ("$defs", "definitions")

BY_NAME: Final = ("properties", "patternProperties", *DEFINITIONS)
LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
"""Where a schema holds others."""


def check_schema(schema: Any, text: str, place: str) -> None:
    """`text` is `schema` as JSON, `place` the field that it came in."""
    if len(text) > MAX_SCHEMA_CHARS:
        raise FieldError(place, f"a schema may have {MAX_SCHEMA_CHARS} characters", "bad_grammar")
    problem = _problem(schema)
    if not problem:
        return
    shared = {name: schema[name] for name in DEFINITIONS if isinstance(schema, dict) and name in schema}
    where, problem = _smallest(schema, place, problem, shared, [MAX_TRIES])
    raise FieldError(where, problem, "bad_grammar")


def _problem(schema: Any) -> str:
    """What is wrong with it, in one line; empty where it compiles."""
    from llguidance import LLMatcher  # few requests need it, so it is loaded with the first of them

    try:
        grammar = LLMatcher.grammar_from_json_schema(msgspec.json.encode(schema).decode())
        problem = LLMatcher.validate_grammar(grammar, None)
    except (ValueError, RuntimeError) as error:
        problem = str(error)
    return " ".join(problem.split())[:300]


def _smallest(schema: Any, place: str, problem: str, shared: dict[str, Any], tries: list[int]) -> tuple[str, str]:
    """The innermost part that does not compile. `tries` counts down what may still be compiled."""
    for name, part in _parts(schema):
        if tries[0] <= 0:
            break
        tries[0] -= 1
        alone = {**shared, **part} if isinstance(part, dict) else part
        found = _problem(alone)
        if found:
            return _smallest(part, f"{place}.{name}", found, shared, tries)
    return place, problem


def _parts(schema: Any) -> list[tuple[str, Any]]:
    if not isinstance(schema, dict):
        return []
    found = [(name, schema[name]) for name in SINGLE if isinstance(schema.get(name), dict)]
    for name in BY_NAME:
        inner = schema.get(name)
        if isinstance(inner, dict):
            found += [(f"{name}.{key}", part) for key, part in inner.items()]
    for name in LISTS:
        inner = schema.get(name)
        if isinstance(inner, list):
            found += [(f"{name}[{at}]", part) for at, part in enumerate(inner)]
    return found
