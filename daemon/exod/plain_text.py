"""Text of others that is safe to show: no control characters, no terminal escapes, nothing that turns the writing
direction. It decides nothing about what a text means. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

SHORT_ID: Final = 6
"""Digits. Ids are random: of ten nodes with one name two share six digits once in 400,000 clusters."""

Id = TypeVar("Id", bound=str)


REPLACEMENT: Final = "\ufffd"


def printable(text: str, most: int | None = None) -> str:
    """`text` with each character that is not to be seen (escape, line break, bidirectional control, lone surrogate)
    replaced, and no longer than `most` characters.
    """
    if most is not None:
        text = text[:most]
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else REPLACEMENT for character in text)


def short_id(node: str) -> str:
    return node[:SHORT_ID]


def labels(nodes: Iterable[tuple[Id, str]]) -> dict[Id, str]:
    """What nodes are called on screens: by name, and where two share one, with the beginning of the id."""
    known = dict(nodes)
    count = Counter(known.values())
    return {node: f"{name} ({short_id(node)})" if count[name] > 1 else name for node, name in known.items()}


def and_join(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
