"""Each file that the docs or a docstring name exists."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("daemon", "engine", "launchd", "mlx_patches", "tests", "docs", ".ci")
NAMED = re.compile(r"[\w./*-]*\w\.(?:py|md|cpp|h|c|template|mk)\b")
LARGEST_PICTURE = 300_000
"""Bytes: a page over a phone's network, and a repository that stays small."""
IN_MLX = {"mlx/backend/metal/distributed.cpp"}


def files() -> set[str]:
    """Every file of the project, by its path and each end of it."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    ends = set()
    for path in found:
        parts = path.relative_to(ROOT).parts
        ends |= {"/".join(parts[start:]) for start in range(len(parts))}
    return ends


FILES = files()


@pytest.mark.parametrize(
    "document", sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]), ids=lambda one: one.name
)
def test_each_file_that_a_document_names_is_there(document: Path) -> None:
    missing = []
    for number, line in enumerate(document.read_text().splitlines(), 1):
        for quoted in re.findall(r"`([^`]+)`", line):
            if NAMED.fullmatch(quoted) and "*" not in quoted and quoted not in FILES | IN_MLX:
                missing.append(f"{document.name}:{number}: {quoted}")
    assert missing == []


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_link_of_a_document_leads_somewhere() -> None:
    lost = []
    for document in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            name, _, anchor = target.partition("#")
            there = document.parent / name if name else document
            if "://" not in target and (not there.exists() or (anchor and anchor not in anchors(there))):
                lost.append(f"{document.name}: {target}")
    assert lost == []


def test_each_picture_is_small_and_shown() -> None:
    shown = "".join(document.read_text() for document in (ROOT / "docs").glob("*.md"))
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert f"](pictures/{picture.name})" in shown, picture.name
        assert picture.stat().st_size <= LARGEST_PICTURE, picture.name


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings and comments of a module, with the line on which each begins."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_each_module_that_a_docstring_or_a_comment_names_is_there() -> None:
    missing = []
    for folder in ("daemon", "engine", "launchd", "mlx_patches"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for number, text in prose(path):
                for name in re.findall(r"[\w/]+\.py\b", re.sub(r"https?://\S+", "", text)):
                    if name not in FILES:
                        missing.append(f"{path.relative_to(ROOT)}:{number}: {name}")
    assert missing == []


WHERE_IS = [
    "hold-up",
    "token bucket",
    "unanimous ack",
    "JACCL",
    "split of layers by memory",
    "request queue",
    "rank's replacement",
    "alert hysteresis",
    "wrong route",
    "incarnation's file",
    "crash parser",
    "plist",
    "Home Assistant",
    "HTTP guard",
    "keep-alive",
    "rendezvous",
    "safe or fast",
    "prompt cache",
    "roll-back",
    "sampling key",
]


def test_the_twenty_things_that_a_newcomer_looks_for_have_their_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("## Where is") : text.index("And of whole subjects")]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    for what in WHERE_IS:
        (row,) = [line for line in rows if what in line.split("|")[1]]
        assert re.search(r"`[\w./-]+\.py`", row.split("|")[2]), row
