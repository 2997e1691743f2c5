"""What each token adds to a text, as bytes, and bytes as text.

A token of a byte-level vocabulary can be a part of a character, so tokens are bytes first, and a character is text
once all of its bytes are there. Decides: which bytes a token has, and which tokens are control tokens. Vocabularies
whose tokens have no bytes of their own (they are joined by rules) go through the tokenizer's own decoding. No MLX.
"""

from __future__ import annotations

import codecs
import functools
from typing import Any, Protocol

from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer

SPACE = "\u2581"
"""SentencePiece's sign for a space."""

REPLACEMENT = "\ufffd"


class TextDecoder(Protocol):
    """Bytes of one answer, as they come, to text."""

    def add(self, token: int) -> str: ...

    def finish(self) -> str:
        """What is left at the end. A character of which bytes lack is held back for ever."""
        ...


class Pieces:
    """The tokens of one tokenizer (mlx-lm's wrapper around it)."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        added: dict[int, Any] = getattr(wrapped, "added_tokens_decoder", None) or {}
        self._added = {int(token): str(entry.content) for token, entry in added.items()}
        self.control: frozenset[int] = frozenset(
            {int(token) for token, entry in added.items() if entry.special} | set(wrapped.all_special_ids)
        )
        """Tokens that say something about the text and belong to none."""
        detokenizer = wrapped.detokenizer
        self._byte_level = isinstance(detokenizer, BPEStreamingDetokenizer) or _decodes_bytes(wrapped)
        self._sentencepiece = isinstance(detokenizer, SPMStreamingDetokenizer)
        self.drops_first_space = self._sentencepiece and bool(detokenizer.trim_space)
        """Does the tokenizer put a space before every text, and its decoder take it away again?"""
        self._known: dict[int, bytes] = {}

    def piece(self, token: int) -> bytes:
        """The token's bytes; of a control token those of its name."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._find(token)
        return found

    def name(self, token: int) -> str:
        """A control token's name."""
        return self.piece(token).decode("utf-8", "replace")

    def decoder(self, *, keep_first_space: bool) -> TextDecoder:
        """For one text. A text that goes on from another (`keep_first_space`) begins with what was said."""
        if self._byte_level or self._sentencepiece:
            return _ByteDecoder(self, drop_first_space=self.drops_first_space and not keep_first_space)
        return _WholeDecoder(self._wrapped.detokenizer)

    def _find(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return added.encode()
        text = self._wrapped.convert_ids_to_tokens(token) if 0 <= token < len(self._wrapped) else None
        if not isinstance(text, str):
            return b""
        if self._byte_level:
            return b"".join(_byte_of(char) for char in text)
        if self._sentencepiece:
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                return bytes([int(text[3:5], 16)])
            return text.replace(SPACE, " ").encode()
        return str(self._wrapped.decode([token])).encode()


def _decodes_bytes(wrapped: Any) -> bool:
    """Is a byte-level decoder one of several? mlx-lm looks for it alone."""
    backend = getattr(wrapped, "backend_tokenizer", None)
    return "ByteLevel(" in str(getattr(backend, "decoder", ""))


def _byte_of(char: str) -> bytes:
    value = _byte_decoder().get(char)
    return char.encode() if value is None else bytes([value])


@functools.lru_cache(maxsize=1)
def _byte_decoder() -> dict[str, int]:
    """GPT-2's alphabet for bytes: https://github.com/openai/gpt-2/blob/master/src/encoder.py"""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


class _ByteDecoder:
    def __init__(self, pieces: Pieces, *, drop_first_space: bool) -> None:
        self._pieces = pieces
        self._drop_space = drop_first_space
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def add(self, token: int) -> str:
        piece = self._pieces.piece(token)
        if self._drop_space and piece:
            self._drop_space = False
            piece = piece.removeprefix(b" ")
        return self._decode(piece)

    def finish(self) -> str:
        return ""


class _WholeDecoder:
    """mlx-lm's decoding of the whole line with each token."""

    def __init__(self, detokenizer: Any) -> None:
        self._detokenizer = detokenizer

    def add(self, token: int) -> str:
        self._detokenizer.add_token(token)
        return str(self._detokenizer.last_segment)

    def finish(self) -> str:
        self._detokenizer.finalize()
        return str(self._detokenizer.last_segment).rstrip(REPLACEMENT)
