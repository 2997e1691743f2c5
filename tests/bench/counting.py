"""A client that counts from 1 to 900 again and again, and how long it waited for a token at which time.

Decides what a gap is: the longest time between two pieces of one answer that touches a stretch of time. Every
answer must be exactly 1 … 900.
"""

from __future__ import annotations

import threading
import time

from tests.lab.chat import ChatStream, count_prompt, numbers
from tests.lab.node import Node

LAST = 900
ENDS_WITHIN_S = 180.0


class Counting(threading.Thread):
    """Counts on `node` without a pause from `start` until `stop`."""

    def __init__(self, node: Node) -> None:
        super().__init__(name=f"client of {node.name}", daemon=True)
        self._node = node
        self._streams: list[ChatStream] = []
        self._wrong = ""
        self._stopping = False

    def run(self) -> None:
        while not self._stopping:
            stream = self._node.stream_chat(count_prompt(1, LAST))
            self._streams.append(stream)
            try:
                if numbers(stream.result(ENDS_WITHIN_S)) != list(range(1, LAST + 1)):
                    self._wrong = stream.story()
            except AssertionError as error:
                self._wrong = str(error)
            if self._wrong:
                return

    def stop(self) -> None:
        """Ends with the answer under way; AssertionError where an answer was not 1 … 900."""
        self._stopping = True
        self.join(ENDS_WITHIN_S)
        self.check()

    def check(self) -> None:
        assert not self._wrong, f"an answer was wrong: {self._wrong}"

    def wait_for_middle(self, deadline_s: float = 60.0) -> None:
        """Returns while an answer is between its 100th and its 400th number: a fault falls into the middle."""
        end = time.monotonic() + deadline_s
        while not (self._streams and 100 <= len(self._streams[-1].arrivals) <= 400):
            self.check()
            stories = [stream.story() for stream in self._streams]
            assert time.monotonic() < end, f"no answer came to its middle: {stories}"
            time.sleep(0.01)

    def gap_s(self, begin: float, end: float) -> float | None:
        """The longest wait within an answer that touches [begin, end]; None where no answer was under way."""
        gaps = [
            gap
            for stream in list(self._streams)
            for gap, arrival in zip(stream.gaps_s(), list(stream.arrivals), strict=False)
            if arrival.at <= end and arrival.at + gap >= begin
        ]
        return max(gaps, default=None)

    def gap_begun_s(self, begin: float, end: float) -> float | None:
        """The longest wait within an answer that began in [begin, end]; None where no answer was under way."""
        gaps = [
            gap
            for stream in list(self._streams)
            for gap, arrival in zip(stream.gaps_s(), list(stream.arrivals), strict=False)
            if begin <= arrival.at <= end
        ]
        return max(gaps, default=None)

    def resumed_at(self, after: float) -> float:
        """When the longest wait ended that touches the second after `after`."""
        found = max(
            (gap, arrival.at)
            for stream in list(self._streams)
            for gap, arrival in zip(stream.gaps_s(), list(stream.arrivals), strict=False)
            if arrival.at <= after + 1.0 and arrival.at + gap >= after
        )
        return sum(found)
