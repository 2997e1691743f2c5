"""Distinguishes a rank that computes from one that hangs: while one computes, no rank gives its step up.

A worker's control thread sees whether its process uses the processor in a step that takes long, and its heartbeat
says so; its status tells the other nodes. Each of them has its own worker wait on for a moment, again and again.
A rank that hangs says nothing of the kind, so the deadlines of a step hold as they are. Nobody waits for a request
that was cancelled or given up (request_queue.py): its step ends at its deadline, with the group, and a process that
does not stop computing it is replaced.

Decides whether a worker is ordered to keep waiting. Pure.
"""

from __future__ import annotations

from typing import Final

from exod.core.engine.engine_events import TellWorker
from exod.core.engine.rank.held_requests import HeldRequests
from exod.core.engine.rank.worker_life import WorkerLife
from exoengine.protocol import KeepWaiting

KEEP_WAITING: Final = TellWorker(KeepWaiting(for_s=4.0))
"""Heartbeats and statuses come once a second each: two of them may be lost or late."""


def keep_waiting(worker: WorkerLife, requests: HeldRequests) -> list[TellWorker]:
    """Some rank of the group computes."""
    knows = worker.is_connected and worker.hello is not None and worker.hello.keeps_waiting
    return [KEEP_WAITING] if knows and requests.is_wanted else []
