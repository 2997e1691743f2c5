"""Which sequence numbers of one direction of one path were seen: replay protection and loss, from one bitmap.

Decides whether a number is fresh (the sliding window of RFC 4303, section 3.4.3) and what share of the newest
numbers never came. Never forgets a number while the sender's incarnation lasts.
"""

from __future__ import annotations

WINDOW = 256
"""Numbers below newest - 255 are refused unseen: as many as loss is judged by, and no live path reorders more."""
LOSS_WINDOW = 50
"""Loss is judged over this many numbers: 2.5 s of the selected path (design, "States, score, switching")."""
RECENT_WINDOW = 20
"""The newest second of the selected path: what is still being lost, as against what was."""
LASTING_WINDOW = 200
"""Ten seconds of the selected path: 1% at random looks like over 5% of 50 within minutes, of these once in days."""
LOSS_MINIMUM = 25
"""Below this many expected numbers one lost datagram would look like many per cent."""

_WINDOW_MASK = (1 << WINDOW) - 1


class SequenceWindow:
    """Bit k of `_bits` says whether `newest - k` was seen. A window that begins at a number refuses all below."""

    __slots__ = ("_base", "_bits", "_loss", "newest")

    def __init__(self, newest: int = 0) -> None:
        self.newest = newest
        self._bits = _WINDOW_MASK if newest else 0
        self._base: int | None = None
        """Where loss counts from: set by the next number that comes."""
        self._loss: float | None = None
        """The last result of `loss`; None where a number came since."""

    def accept(self, seq: int) -> bool:
        """True the first time a number comes, if it is not too old to tell."""
        ahead = seq - self.newest
        self._loss = None
        if ahead > 0:
            if self._base is None:
                self._base = seq
            self._bits = ((self._bits << ahead) | 1) & _WINDOW_MASK if ahead < WINDOW else 1
            self.newest = seq
            return True
        bit = 1 << -ahead
        if -ahead >= WINDOW or self._bits & bit:
            return False
        self._bits |= bit
        return True

    def measure_from_here(self) -> None:
        """Loss counts from the newest number on: a path came back, and what it lost while dead is history."""
        self._base = self.newest
        self._loss = None

    def measure_anew(self) -> None:
        """Loss counts from the next number on: an end has a new incarnation."""
        self._base = None
        self._loss = None

    @property
    def loss(self) -> float:
        """The share of the newest numbers that never came; 0.0 until there are enough to judge."""
        if self._loss is None:
            expected = self._expected
            self._loss = self._missing(min(LOSS_WINDOW, expected)) if expected >= LOSS_MINIMUM else 0.0
        return self._loss

    @property
    def recent_loss(self) -> float:
        """The same of the newest 20 alone: raw beside smoothed, as Babel asks both before it acts (RFC 9616)."""
        expected = self._expected
        return self._missing(RECENT_WINDOW) if expected >= RECENT_WINDOW else 0.0

    @property
    def lasting_loss(self) -> float:
        """The same of the newest 200, or 100 at least: for people, who want to know what stays."""
        expected = self._expected
        return self._missing(min(LASTING_WINDOW, expected)) if 2 * expected >= LASTING_WINDOW else 0.0

    @property
    def _expected(self) -> int:
        return 0 if self._base is None else self.newest - self._base + 1

    def _missing(self, count: int) -> float:
        return 1.0 - (self._bits & ((1 << count) - 1)).bit_count() / count
