"""The process that compiles schemas: `python -P -m exod.http.dialects.schema_process`.

A process of its own because a compiler at work cannot be interrupted: 29 patterns under one `allOf`, 1 kB of
schema, keep it busy for seven minutes and take a gigabyte every ten seconds. It has `CPU_S` of processor time for
one schema, by its own clock, so that a busy host refuses no schema that an idle one takes; the system ends it then.
It ends with the daemon, whose end closes its standard input.

llguidance compiles a schema here as the engine will, but without a vocabulary. Its errors tell what is wrong but
not where, so this module searches for the smallest part of the schema that it refuses.
"""

from __future__ import annotations

import signal
import sys
from typing import IO, Any, Final

import msgspec

from exoengine.decoding import decode

CPU_S: Final = 2.0
"""Ten times what 2,000 optional properties take."""

MAX_TRIES: Final = 200
"""Parts that are compiled to find the one that is wrong, before the whole schema is named instead."""

DEFINITIONS: Final = ("$defs", "definitions")

BY_NAME: Final = ("properties", "patternProperties", *DEFINITIONS)
LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
"""Where a schema holds others."""


class SchemaQuestion(msgspec.Struct, frozen=True, array_like=True):
    schema: Any
    place: str


class SchemaOutcome(msgspec.Struct, frozen=True, array_like=True):
    """`problem` is empty where the schema compiles; else `place` is that of the part that does not."""

    place: str
    problem: str


_questions: msgspec.json.Decoder[SchemaQuestion] = msgspec.json.Decoder(SchemaQuestion)


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """The process: one line for each question, until there are no more."""
    for line in questions:
        question = decode(_questions, line)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # SIGPROF, which ends this process
        outcome = smallest_problem(question.schema, question.place)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(msgspec.json.encode(outcome) + b"\n")
        answers.flush()


def smallest_problem(schema: Any, place: str) -> SchemaOutcome:
    """What is wrong with which part of it. In the process that compiles."""
    problem = _problem(schema)
    if not problem:
        return SchemaOutcome(place, "")
    shared = {name: schema[name] for name in DEFINITIONS if isinstance(schema, dict) and name in schema}
    return SchemaOutcome(*_smallest(schema, place, problem, shared, [MAX_TRIES]))


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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the daemon's terminal: the daemon ends it
    serve(sys.stdin.buffer, sys.stdout.buffer)
