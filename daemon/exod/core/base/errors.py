"""Two kinds of wrong: my own illegal move, and what a peer or a stranger sent. They never mix.

An IllegalMoveError is a bug of this program and says so; a WireError is a fact about bytes that arrived and ends as
a LogRejected command. Called by every module of the core.
"""

from __future__ import annotations


class IllegalMoveError(Exception):
    """The core was asked for a move that its own rules forbid. Carries what was asked, and of what state."""

    def __init__(self, what: str, **fields: object) -> None:
        story = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        super().__init__(f"{what} ({story})" if story else what)
        self.what = what
        self.fields = fields


class WireError(Exception):
    """Bytes that arrived are not an acceptable datagram. `code` is stable, `text` is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
