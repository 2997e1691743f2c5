"""Two kinds of wrong: my own illegal move, and what a peer or a stranger sent. They never mix.

An IllegalMoveError is a bug of this program and says so; a WireError is a fact about bytes that arrived and ends as
a LogRejected command.
"""

from __future__ import annotations

from collections.abc import Sequence


class IllegalMoveError(Exception):
    """The core was asked for a move that its own rules forbid. Carries what was asked, of what state, and the
    newest decisions about the same subject, oldest first: what led there.
    """

    def __init__(self, what: str, *, story: Sequence[object] = (), **fields: object) -> None:
        given = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        text = f"{what} ({given})" if given else what
        super().__init__("\n  ".join([text, *(f"before: {decision}" for decision in story)]))
        self.what = what
        self.fields = fields
        self.story = tuple(story)


class WireError(Exception):
    """Bytes that arrived are not an acceptable datagram. `code` is stable, `text` is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
