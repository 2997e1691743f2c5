"""Decodes bytes that somebody else wrote, or that a disk may have damaged: JSON and MessagePack to typed values.

It decides nothing about what a value means. Whatever is wrong with the bytes is a DecodingError, so that no
caller has to know all that msgspec can raise: a bad byte of UTF-8 is a UnicodeDecodeError there, deep nesting a
RecursionError, and neither is a msgspec.DecodeError. The daemon imports this module too; it loads no MLX.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

RAISED_BY_MSGSPEC: Final = (ValueError, RecursionError, OverflowError)
"""ValueError covers msgspec's own errors (DecodeError, ValidationError) and UnicodeDecodeError."""

Value = TypeVar("Value")
Decoded = TypeVar("Decoded", covariant=True)


class DecodingError(Exception):
    """The bytes are not what was expected; the text says why, in one line."""

    def __init__(self, text: str) -> None:
        """msgspec repeats names and values, whatever they hold."""
        super().__init__(text if text.isprintable() else "".join(map(_visible, text)))


def _visible(character: str) -> str:
    return character if character.isprintable() else "\ufffd"


class MalformedError(DecodingError):
    """They are no JSON or MessagePack at all."""


class WrongShapeError(DecodingError):
    """They are well formed and hold another type of value."""

    def __init__(self, cause: msgspec.ValidationError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Decoder(Protocol[Decoded]):
    """`msgspec.json.Decoder` and `msgspec.msgpack.Decoder`."""

    def decode(self, data: bytes, /) -> Decoded: ...


def decode(decoder: Decoder[Value], data: bytes) -> Value:
    """`data` through a prepared decoder. Raises DecodingError."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise WrongShapeError(error) from None
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise MalformedError(f"it is not valid UTF-8 ({error.reason})") from None
    except RAISED_BY_MSGSPEC as error:
        raise MalformedError(str(error)) from None


def from_json(data: bytes, shape: type[Value]) -> Value:
    """Raises DecodingError."""
    decoder: Decoder[Value] = _json_decoder(cast(Hashable, shape))
    return decode(decoder, data)


def from_msgpack(data: bytes, shape: type[Value]) -> Value:
    """Raises DecodingError."""
    decoder: Decoder[Value] = _msgpack_decoder(cast(Hashable, shape))
    return decode(decoder, data)


@cache
def _json_decoder(shape: Any) -> Any:
    """Making a decoder costs more than a small message; there are as many as there are shapes in the code."""
    return msgspec.json.Decoder(shape)


@cache
def _msgpack_decoder(shape: Any) -> Any:
    return msgspec.msgpack.Decoder(shape)
