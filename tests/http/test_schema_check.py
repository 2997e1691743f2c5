"""The process that compiles schemas: what it says, and what its end means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from exod.errors import RequestError
from exod.http.dialects import schema_check
from exod.http.dialects.schema_check import SchemaCompiler

GOOD: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
BAD: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "wrong"}}}}
ENDLESS: dict[str, Any] = {"allOf": [{"type": "string", "pattern": f"^.*a.{{{count}}}b"} for count in range(1, 30)]}


@pytest.fixture
def compiler() -> Iterator[SchemaCompiler]:
    compiler = SchemaCompiler()
    yield compiler
    compiler.close()


def test_the_part_that_is_wrong_is_named(compiler: SchemaCompiler) -> None:
    assert compiler.compile(GOOD, "field").problem == ""
    outcome = compiler.compile(BAD, "field")
    assert outcome.place == "field.properties.a.items"
    assert "wrong" in outcome.problem


def test_a_schema_that_takes_too_long_ends_its_process_and_no_more(compiler: SchemaCompiler) -> None:
    assert compiler.compile(ENDLESS, "field").problem == schema_check.TOO_LONG
    assert compiler.compile(GOOD, "field").problem == ""


def test_an_outcome_is_remembered(compiler: SchemaCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [compiler.compile(schema, "field") for schema in (GOOD, BAD)]
    monkeypatch.setattr(schema_check, "COMMAND", ("/nonexistent",))
    compiler.close()
    assert [compiler.compile(schema, "field") for schema in (GOOD, BAD)] == outcomes
    with pytest.raises(RequestError) as refused:
        compiler.compile({"type": "string"}, "field")
    assert refused.value.code == "unavailable"


def test_what_is_remembered_is_bounded(compiler: SchemaCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_check, "MAX_KNOWN", 1)
    for schema in (GOOD, {"type": "string"}):
        compiler.compile(schema, "field")
    monkeypatch.setattr(schema_check, "COMMAND", ("/nonexistent",))
    compiler.close()
    assert compiler.compile({"type": "string"}, "field").problem == ""
    with pytest.raises(RequestError):
        compiler.compile(GOOD, "field")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("exit 3", "internal_error"),
        ("kill -SEGV $$", ""),
        ("kill -KILL $$", "unavailable"),
        ("exec sleep 60", "unavailable"),
    ],
)
def test_a_process_that_ends_or_hangs_is_told_and_replaced(
    end: str, code: str, compiler: SchemaCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(schema_check, "COMMAND", ("sh", "-c", f"read line; {end}"))
        broken.setattr(schema_check, "WALL_S", 0.5)
        if code:
            with pytest.raises(RequestError) as refused:
                compiler.compile(GOOD, "field")
            assert refused.value.code == code
        else:
            assert compiler.compile(GOOD, "field").problem == schema_check.BROKE
    assert compiler.compile({"type": "string"}, "field").problem == ""
