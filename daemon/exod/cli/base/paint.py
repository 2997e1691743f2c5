"""How text looks on a terminal: colours, marks, widths, columns, and figures with their units.

Decides only looks. Everything is a string that fits into cells of a terminal; a mark differs in shape as well as in
colour, and without Unicode in ASCII. What came from elsewhere (a peer's name, a reason) is stripped of control
characters, so that it cannot move the cursor. Pure.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

Level = Literal["good", "warn", "bad", "idle"]
Style = Literal["", "good", "warn", "bad", "idle", "dim", "bold"]

_CODES: Final[dict[Style, str]] = {
    "": "",
    "good": "\x1b[32m",
    "warn": "\x1b[33m",
    "bad": "\x1b[31m",
    "idle": "\x1b[2m",
    "dim": "\x1b[2m",
    "bold": "\x1b[1m",
}
_RESET: Final = "\x1b[0m"
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;]*m")

_MARKS: Final[dict[Level, tuple[str, str]]] = {
    "good": ("●", "*"),
    "warn": ("▲", "!"),
    "bad": ("✖", "x"),
    "idle": ("○", "-"),
}
_ASCII: Final = str.maketrans("▁▂▃▄▅▆▇█━", ".:-=+*#@=") | str.maketrans(
    {"→": "->", "…": "...", "·": "-", "µ": "u", "●": "*", "▲": "!", "✖": "x", "○": "-"}
)

GAP: Final = "  "
"""Between two columns."""

NARROWEST: Final = 40
"""Columns below which nothing is cut any further: such a terminal wraps."""


class Cell(NamedTuple):
    """A piece of one line: its text and how it looks."""

    text: str
    style: Style = ""
    right: bool = False
    """Aligned to the right of its column."""
    spare: bool = False
    """Its column is left out where the terminal is too narrow for all."""


class Paint:
    """Turns cells into strings, with or without colour, in Unicode or ASCII."""

    def __init__(self, *, color: bool, unicode: bool = True) -> None:
        self._color = color
        self._unicode = unicode

    def styled(self, text: str, style: Style) -> str:
        clean = self.plain(text)
        return f"{_CODES[style]}{clean}{_RESET}" if self._color and style and clean else clean

    def plain(self, text: str) -> str:
        """`text` without control characters, in what this terminal can show."""
        clean = "".join(" " if unicodedata.category(char) in ("Cc", "Cf", "Cs") else char for char in text)
        if self._unicode:
            return clean
        return clean.translate(_ASCII).encode("ascii", "replace").decode()

    def mark(self, level: Level) -> Cell:
        return Cell(_MARKS[level][0 if self._unicode else 1], level)

    def line(self, cells: Iterable[Cell]) -> str:
        """The cells one after the other."""
        return "".join(self.styled(cell.text, cell.style) for cell in cells).rstrip()

    def columns(self, rows: Sequence[Sequence[Cell]], *, indent: int = 0, width: int | None = None) -> list[str]:
        """Each row's cells under those of the row above; the last cell of a row may be of any length."""
        lines = self._columns(rows, indent)
        if width is None or all(cells_of(line) <= width for line in lines):
            return lines
        spare = {at for row in rows for at, cell in enumerate(row) if cell.spare}
        return self._columns([[cell for at, cell in enumerate(row) if at not in spare] for row in rows], indent)

    def _columns(self, rows: Sequence[Sequence[Cell]], indent: int) -> list[str]:
        widths: list[int] = []
        for row in rows:
            for at, cell in enumerate(row[:-1]):
                width = cells_of(self.plain(cell.text))
                if at == len(widths):
                    widths.append(width)
                widths[at] = max(widths[at], width)
        return [self._row(row, widths, indent) for row in rows]

    def marked(self, rows: Sequence[Sequence[Cell]], *, indent: int = 0, width: int | None = None) -> list[str]:
        """As `columns`, for rows that begin with a mark: it stands close to its words."""
        texts = self.columns([row[1:] for row in rows], width=width and width - indent - 2)
        marks = [" " * indent + self.styled(*row[0][:2]) for row in rows]
        return [f"{mark} {text}" for mark, text in zip(marks, texts, strict=True)]

    def _row(self, row: Sequence[Cell], widths: list[int], indent: int) -> str:
        parts = [" " * indent]
        for at, cell in enumerate(row):
            fill = " " * (widths[at] - cells_of(self.plain(cell.text))) if at < len(row) - 1 else ""
            text = self.styled(cell.text, cell.style)
            parts.append((fill + text if cell.right else text + fill) + (GAP if at < len(row) - 1 else ""))
        return "".join(parts).rstrip()


def cells_of(text: str) -> int:
    """How many columns of a terminal `text` takes; colours take none."""
    plain = _ESCAPE.sub("", text)
    return sum(_cell_width(char) for char in plain)


def _cell_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def fit(line: str, width: int) -> str:
    """`line`, cut so that it takes at most `width` columns; its colours end properly."""
    width = max(width, NARROWEST)
    if cells_of(line) <= width:
        return line
    out, used, colored = [], 0, False
    for piece in re.split(r"(\x1b\[[0-9;]*m)", line):
        if _ESCAPE.fullmatch(piece):
            out.append(piece)
            colored = piece != _RESET
            continue
        for char in piece:
            if used + _cell_width(char) > width - 1:
                return "".join(out) + "…" + (_RESET if colored else "")
            out.append(char)
            used += _cell_width(char)
    return "".join(out)


def wrap(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, broken between words."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cells_of(joined) > max(width, 20):
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


# --- figures with their units -------------------------------------------------------------------------------


def ms(value: float | None) -> str:
    """Milliseconds: three digits below 1, two below 10, one below 100."""
    if value is None:
        return "-"
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} ms"


def us(value: float) -> str:
    return f"{value:.0f} µs" if value < 100_000 else f"{value / 1000:.0f} ms"


def percent(share: float) -> str:
    value = share * 100
    return f"{value:.0f} %" if value == 0 or value >= 10 else f"{value:.1f} %"


def mib(count: float | None) -> str:
    if count is None:
        return "-"
    value = count / 2**20
    return (
        f"{value:.1f} MiB" if value < 100 else f"{value:.0f} MiB" if value < 10_000 else f"{value / 1024:.1f} GiB"
    )


def duration(seconds: float) -> str:
    """The two largest units: `12 s`, `3 min 20 s`, `3 h 12 min`, `2 d 4 h`."""
    whole = max(int(seconds), 0)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    parts = [
        f"{value} {unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (left, "s")) if value
    ]
    return " ".join(parts[:2]) or "0 s"


def rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.0f} tokens/s" if tokens_per_s >= 100 else f"{tokens_per_s:.1f} tokens/s"


def layers(span: tuple[int, int]) -> str:
    """A rank's layers, the last one inclusive; before they are known there are none."""
    first, end = span
    return f"layers {first}-{end - 1}" if end > first else "no layers yet"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
