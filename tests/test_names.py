"""One name for one thing: no two classes of what ships share a name, whichever room they are in."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHIPS = ("daemon/exod", "engine/exoengine", "mlx_patches")


def test_no_two_classes_share_a_name() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for folder in SHIPS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(str(path.relative_to(ROOT)))
    assert len(found) > 500, "the search finds the classes"
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
