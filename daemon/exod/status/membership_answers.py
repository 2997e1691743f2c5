"""What `exoctl cluster` asks of a running daemon about its key, as text: invite, rotate, remove.

Decides nothing about who is given a key (core/membership/membership.py). Errors for people are RequestError.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from exod.core.membership.membership import MAX_INVITED_S, RETIRED_S, Membership
from exod.daemon_api.shapes import Done, Invited
from exod.errors import RequestError
from exod.model import NodeId
from exod.status.snapshot import StatusBuilder

DAY_S: Final = 86_400


class MembershipShell(Protocol):
    """The part that carries keys (peers/membership_driver.py)."""

    core: Membership

    @property
    def fingerprint(self) -> str: ...

    async def rotate(self, leave_out: tuple[NodeId, ...] = ()) -> None: ...

    def unable(self) -> set[NodeId]: ...

    def invite(self, for_s: float, once: bool, addresses: tuple[str, ...], port: int) -> str: ...


class MembershipAnswers:
    """`reached_at` says on which addresses and which port this node listens for others."""

    def __init__(
        self,
        shell: MembershipShell,
        status: StatusBuilder,
        reached_at: Callable[[], tuple[tuple[str, ...], int]],
    ) -> None:
        self._shell, self._status, self._reached_at = shell, status, reached_at

    @property
    def fingerprint(self) -> str:
        return self._shell.fingerprint

    def invite(self, for_s: float, once: bool) -> Invited:
        addresses, port = self._reached_at()
        token = self._shell.invite(for_s, once, addresses, port)
        return Invited(token, time.time() + min(for_s, MAX_INVITED_S), once)

    async def rotate(self) -> Done:
        await self._shell.rotate()
        return Done(self._told("the cluster has a new key"))

    async def remove(self, node: NodeId) -> Done:
        view = self._status.view()
        if node == view.me.id:
            raise RequestError("invalid_value", "a node cannot remove itself: run this on another one")
        name = next((one.name for one in view.nodes if one.id == node), node)
        await self._shell.rotate((node,))
        text = f"{name} was removed, and the cluster has a new key"
        return Done(f"{self._told(text)}; {name} comes back by an invitation alone")

    def _told(self, what: str) -> str:
        """Who has the key, who will get it, and who will not."""
        core, names = self._shell.core, self._status.names()
        parts = [f"{what}: {self._shell.fingerprint}"]
        holders = sorted(names.get(node, node) for node in core.holders)
        parts += [f"{', '.join(holders)} took it over"] if holders else []
        unable = self._shell.unable()
        away = sorted(names.get(node, node) for node in core.away() - unable)
        if away:
            days = f"{RETIRED_S / DAY_S:.0f} days"
            parts.append(f"away: {', '.join(away)}, to be given it on return within {days}")
        if unable:
            stuck = ", ".join(sorted(names.get(node, node) for node in unable))
            parts.append(f"not given to {stuck}: an older exod, or another node key than before; join it anew")
        return "; ".join(parts)
