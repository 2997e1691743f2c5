"""Each code that the program can say has one row, and people read the same table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from exod import alert_table
from exod.alert_table import ALERTS, MODEL_FAILURES, NOTES
from exod.core.base import facts

ROOT = Path(__file__).parents[1]
NO_RANK_FAILS_WITH = {"busy", "incomplete", "unwritable"}
"""Codes of `exoctl model`, which no rank meets."""


def first_arguments(*names: str) -> Iterator[str]:
    """What calls of `names` say first, where that is a text or a constant, of the module or of the facts."""
    shared = {name: value for name, value in vars(facts).items() if isinstance(value, str) and name.isupper()}
    for folder in (ROOT / "daemon" / "exod", ROOT / "engine" / "exoengine"):
        for file in folder.rglob("*.py"):
            tree = ast.parse(file.read_text())
            constants = shared | {
                target.id: node.value.value
                for node in tree.body
                if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant)
                for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                if isinstance(target, ast.Name) and isinstance(node.value.value, str)
            }
            for node in ast.walk(tree):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in names
                    and node.args
                ):
                    first = node.args[0]
                    if isinstance(first, ast.Constant) and isinstance(first.value, str):
                        yield first.value
                    elif isinstance(first, ast.Name) and first.id in constants:
                        yield constants[first.id]


def test_every_reason_of_the_health_has_a_row_and_every_row_a_reason() -> None:
    assert set(first_arguments("Fact")) == set(ALERTS) | set(NOTES)


def test_every_failure_of_a_model_has_a_row() -> None:
    codes = set(first_arguments("ModelFolderError")) - NO_RANK_FAILS_WITH
    assert len(codes) > 20, "the search finds them"
    assert codes <= set(MODEL_FAILURES)


def test_no_code_is_in_both_tables_and_each_says_what_to_do() -> None:
    assert not ALERTS.keys() & MODEL_FAILURES.keys()
    assert not NOTES.keys() & (ALERTS.keys() | MODEL_FAILURES.keys())
    for kind in (*ALERTS.values(), *MODEL_FAILURES.values(), *NOTES.values()):
        assert kind.meaning.endswith(".")
        assert kind.cure
        assert not kind.cure.endswith(".")


def test_the_document_is_the_one_that_the_program_makes() -> None:
    text = (ROOT / "docs" / "alerts.md").read_text()
    assert text == alert_table.document(), "python -m exod.alert_table > docs/alerts.md"


def test_a_code_of_a_newer_peer_is_a_warning() -> None:
    assert alert_table.severity("nobody_knows_it") == "warning"
