"""Groups that stand and generate nothing: when is a new process the only cure?

Decides that by three signs: several groups in a row hang without a token; the worker stands idle although a request
is under way; on a Mac, a process that an earlier daemon left has not reached the other ranks since: macOS judges a
process's network by the program that is responsible for it, and that one is gone. Monotonic seconds.
"""

from __future__ import annotations

from typing import Final

from exoengine.protocol import Aborted, Heartbeat, Hello

HUNG_GROUPS_LIMIT: Final = 3
"""So many in a row are no accident: a new process starts from what the daemon knows."""

IDLE_DEADLINE_S: Final = 15.0
"""A group opens a request at once and gives up a rank that does not within 5 s: past this the worker lost it."""


class StuckGroup:
    def __init__(self) -> None:
        self.doubts_orphans = False
        """May a process lose the network with the daemon that started it?"""
        self._is_doubted = False
        """Was the process left by an earlier daemon, and stood in no new group since?"""
        self._idle_since: float | None = None
        self._hung_groups = 0
        """Groups in a row that hung before a single token came of them."""

    def token(self) -> None:
        self._hung_groups = 0

    def process_ended(self) -> None:
        self._hung_groups = 0
        self._is_doubted = False

    def greeted(self, hello: Hello) -> None:
        self._is_doubted = self.doubts_orphans and hello.load is not None

    def formed(self) -> None:
        self._is_doubted = False

    def aborted(self, aborted: Aborted, was_generating: bool) -> bool:
        """`was_generating`: it stood, and a request was under way. True where a new process is needed."""
        if self._is_doubted and aborted.code == "deadline":
            return True
        if was_generating and aborted.code == "deadline":
            self._hung_groups += 1
        return self._hung_groups >= HUNG_GROUPS_LIMIT

    def idles(self, heartbeat: Heartbeat, should_generate: bool, now: float) -> bool:
        """`should_generate`: the group stands, and a request is under way. True where a new process is needed."""
        if not should_generate or heartbeat.state != "ready":
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > IDLE_DEADLINE_S:
            self._idle_since = None
            return True
        return False
