"""Bugs planted on purpose in the engine's core: the joint simulation must find each.

As in tests/sim/planted.py, each is a small change such as a tired hand makes, applied and taken back.
"""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

from exod.core.base import cluster_wish
from exod.core.engine import client_requests
from exoengine.protocol import TokenOut


def _deliver_replays() -> Any:
    """A token that was delivered before is delivered again."""
    output = client_requests.ClientRequests.output

    def careless(self: Any, request_id: str, one: Any, token_count: int, now: float) -> Any:
        pending = self._pending.get(request_id)
        if pending is not None and isinstance(one, TokenOut) and one.index < len(pending.tokens):
            return [client_requests.DeliverToken(request_id, one)]
        return output(self, request_id, one, token_count, now)

    return mock.patch.object(client_requests.ClientRequests, "output", careless)


def _keep_who_left() -> Any:
    """The request of a client that went away is cancelled, and waited for all the same."""

    def forgetful(self: Any, request_id: str) -> Any:
        return [client_requests.CancelRequest(request_id)] if self.waits_for(request_id) else []

    return mock.patch.object(client_requests.ClientRequests, "leave", forgetful)


def _submit_once() -> Any:
    """What a coordinator has confirmed is never submitted again, whichever node coordinates by then."""
    return mock.patch.multiple(
        client_requests.ClientRequest,
        confirm=lambda self, now: self.__dict__.update(confirmed=True, submit_at=math.inf),
        submit_again=lambda self, now: None,
    )


def _older_command() -> Any:
    """Of two commands the older one is kept."""

    def oldest(one: Any, other: Any) -> Any:
        return one or other if one is None or other is None else min(one, other, key=lambda wish: wish.at)

    return mock.patch.object(cluster_wish, "newest", oldest)


PLANTED = {
    "replayed-token": (_deliver_replays, "E2"),
    "keep-who-left": (_keep_who_left, "E1"),
    "submit-once": (_submit_once, "E5"),
    "older-command": (_older_command, "E7"),
}
"""Name -> (the bug, the invariant that it breaks)."""
