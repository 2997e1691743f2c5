"""Text of others that is safe to show: no control characters, no terminal escapes, nothing that turns the writing
direction. It decides nothing about what a text means. Pure.
"""

from __future__ import annotations

from typing import Final

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
