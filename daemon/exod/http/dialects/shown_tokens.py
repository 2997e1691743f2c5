"""Which of an answer's tokens stand in the text that the client was given, and where: those have log probabilities.

Text is held back while it may begin a stop string, and cut where it was one. A token's log probability comes when
all of its text was shown, so that none of a stop string's is given away, and `text_offset` is where it stands.
Decides only that. Pure.
"""

from __future__ import annotations

import codecs
from collections import deque
from typing import Final

import msgspec

from exod.daemon_api.interface import GenerationEnd, TextDelta

_UTF8: Final = codecs.getincrementaldecoder("utf-8")


class ShownToken(msgspec.Struct, frozen=True):
    delta: TextDelta
    offset: int
    """Characters of the text before it."""
    is_head: bool = False
    """It is the token before the delta's own, the first one of a prompt that is scored; nothing is known of it."""


class ShownTokens:
    """Takes an answer's deltas in their order."""

    def __init__(self) -> None:
        self._decoder = _UTF8("replace")
        self._waiting: deque[tuple[TextDelta, str, bool]] = deque()
        """Tokens that were not all shown, with the characters that each completes."""
        self._shown = ""
        """From where the first of them stands."""
        self._offset = 0

    def take(self, delta: TextDelta | GenerationEnd) -> list[ShownToken]:
        """The tokens that are now shown."""
        self._shown += delta.text
        if isinstance(delta, GenerationEnd):
            found = self._settled()
            if not delta.stop_string:  # cut in a character, or a beginning of a marker that belongs to no text
                found += [self._told(len(self._shown)) for _ in range(len(self._waiting))]
            return found
        for piece, is_head in ((delta.head, True), (delta.piece, False)):
            if piece:
                self._waiting.append((delta, self._decoder.decode(piece), is_head))
        return self._settled()

    def _settled(self) -> list[ShownToken]:
        found: list[ShownToken] = []
        while self._waiting and self._shown:
            _, characters, _ = self._waiting[0]
            # Spaces and line ends beside what is thought, and before the first word, are not shown.
            for own in (characters, characters.lstrip()):
                if self._shown.startswith(own):
                    found.append(self._told(len(own)))
                    break
                if own.startswith(self._shown):
                    return found
            else:  # a part of a marker: no text will come of it
                found.append(self._told(0))
        return found

    def _told(self, length: int) -> ShownToken:
        """The first token that waits, which takes up so much of the text."""
        delta, _, is_head = self._waiting.popleft()
        token = ShownToken(delta, self._offset, is_head)
        self._offset += length
        self._shown = self._shown[length:]
        return token
