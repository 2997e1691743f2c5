"""What a client typed stays text: a control token's name inside a message is no control token.

A template writes control tokens and messages into one text, and a tokenizer cannot tell them apart. So each name
that a client typed is marked before the template sees it, by a character that no client typed. Afterwards the text
is cut at the control tokens of the template, and whatever holds a mark is read by a copy of the tokenizer that
knows no control tokens. A prompt without such names is read as a whole, as ever.

Decides: which names are typed, and which tokens they are. Where the tokenizer cannot read a part as text (it is no
`tokenizers` one, or it would put a space before each part), a space goes into each typed name instead: the text is
changed a little, and is still no control token. No MLX.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

FIRST_MARK: Final = 0xF0000
"""Of the private use plane: nothing there has a meaning, and tokenizers know none of it."""

Encode = Callable[[str], list[int]]


class TypedText:
    """Of one tokenizer (mlx-lm's wrapper); `ours` is what the server itself writes into messages."""

    def __init__(self, wrapped: Any, ours: frozenset[str] = frozenset()) -> None:
        self._backend = getattr(wrapped, "backend_tokenizer", None)
        added = getattr(wrapped, "added_tokens_decoder", None) or {}
        special = {int(token): str(entry.content) for token, entry in added.items() if entry.special}
        ids, texts = getattr(wrapped, "all_special_ids", ()), getattr(wrapped, "all_special_tokens", ())
        special |= {int(token): str(text) for token, text in zip(ids, texts, strict=False)}
        self._control = frozenset(special)
        names = {name for name in special.values() if name.strip()} - ours
        known = sorted(names, key=len, reverse=True)
        self._firsts = {name[0] for name in known}
        self._names = re.compile("|".join(re.escape(name) for name in known)) if known else None
        self._reader: Any = None
        """The copy that knows no control tokens; made when it is first needed, for it takes half a second."""

    def mark_for(self, given: Any) -> str:
        """The character that marks what is typed in these texts; empty where they hold no control token's name."""
        texts = list(_texts(given))
        if not any(self._holds_name(text) for text in texts):
            return ""
        used = {character for text in texts for character in text if ord(character) >= FIRST_MARK}
        return next(chr(code) for code in range(FIRST_MARK, FIRST_MARK + len(used) + 1) if chr(code) not in used)

    def _holds_name(self, text: str) -> bool:
        if self._names is None or not any(first in text for first in self._firsts):
            return False
        return self._names.search(text) is not None

    def marked(self, given: Any, mark: str) -> Any:
        """The same lists, objects and texts, with the mark behind the first character of each typed name."""
        if not mark or self._names is None:
            return given
        if isinstance(given, str):
            return self._names.sub(lambda found: found[0][0] + mark + found[0][1:], given)
        if isinstance(given, dict):
            return {self.marked(key, mark): self.marked(value, mark) for key, value in given.items()}
        if isinstance(given, list | tuple):
            return [self.marked(value, mark) for value in given]
        return given

    def tokens(self, text: str, mark: str, encode: Encode) -> list[int]:
        """Of a text that the template made of marked ones. `encode` reads control tokens as such."""
        if not mark or mark not in text:
            return encode(text)
        found: list[int] = []
        for part in self._parts(text, mark):
            if mark not in part:
                found += encode(part)
                continue
            read = self._read_plain(part.replace(mark, ""))
            if read is None:
                return encode(text.replace(mark, " "))
            found += read
        return found

    def _parts(self, text: str, mark: str) -> list[str]:
        """The text, cut at the control tokens beside each stretch that holds a mark."""
        assert self._names is not None
        parts, whole, at = [], "", 0
        for found in [*self._names.finditer(text), None]:
            end = len(text) if found is None else found.start()
            stretch = text[at:end]
            if mark in stretch:
                parts += [whole, stretch]
                whole = ""
            else:
                whole += stretch
            if found is not None:
                whole, at = whole + found[0], found.end()
        return [part for part in (*parts, whole) if part]

    def _read_plain(self, text: str) -> list[int] | None:
        """Its tokens, none of which is a control token; None where this tokenizer cannot say."""
        reader = self._plain_reader()
        if reader is None:
            return None
        tokens = [int(token) for token in reader.encode(text, add_special_tokens=False).ids]
        if not self._control.isdisjoint(tokens):
            return None
        normalizer = reader.normalizer
        wanted = text if normalizer is None else normalizer.normalize_str(text)
        return tokens if reader.decode(tokens, skip_special_tokens=False) in (text, wanted) else None

    def _plain_reader(self) -> Any:
        if self._reader is None and self._backend is not None:
            self._reader = copy.deepcopy(self._backend)
            self._reader.encode_special_tokens = True
        return self._reader


def _texts(given: Any) -> Iterable[str]:
    if isinstance(given, str):
        yield given
    elif isinstance(given, dict):
        for key, value in given.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(given, list | tuple):
        for value in given:
            yield from _texts(value)
