"""What people read about the configuration is what the program decides."""

from __future__ import annotations

import tomllib
from pathlib import Path

from exod.config import reference
from exod.config.settings import build, every_key

ROOT = Path(__file__).parent.parent.parent


def test_every_key_has_a_meaning_and_no_other_has() -> None:
    keys = {section: set(entries) for section, entries in every_key().items()}
    assert {section: set(entries) for section, entries in reference.MEANINGS.items()} == keys
    assert set(reference.SECTIONS) == set(keys)


def test_the_document_is_the_one_that_the_program_makes() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert text == reference.document(), "python -m exod.config.reference > docs/configuration.md"


def test_the_sample_sets_nothing_and_with_each_key_uncommented_is_right() -> None:
    text = reference.sample()
    assert all(section == {} for section in tomllib.loads(text).values())
    table = tomllib.loads("\n".join(_uncommented(line) for line in text.splitlines()))
    keys = {section: set(entries) for section, entries in every_key().items()}
    assert {section: set(entries) for section, entries in table.items()} == keys
    assert build(table, {}, None) == build({}, {}, None), "each default in the sample is the default"


def _uncommented(line: str) -> str:
    """`#key = value` is a key; `# text` is a text."""
    return line[1:] if line.startswith("#") and line[1:2] not in ("", " ") else line
