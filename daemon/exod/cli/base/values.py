"""What a value of an option may be: argparse's `type`, with a text that says what is allowed. Pure."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {low} to {high}")
        return value

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:  # nan is not, either
            raise argparse.ArgumentTypeError(f"{text}: expected a number from {low:g} to {high:g}")
        return value

    return read


def name(text: str) -> str:
    """Of a node, a model, a path, a type of events."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a name, and this is empty")
    return text


def path(text: str) -> Path:
    """Of a file. An empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, and this is empty")
    return Path(text)


def seconds_or_more(text: str) -> float:
    """How long to wait."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected seconds, 0 or more")
    return value
