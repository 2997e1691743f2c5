"""What a node that hears nobody should know: is multicast blocked, who is expected, which cable has no address.

One Mac alone is as it should be, so that is a note; a peer that the configuration names and that never answers is a
reason. Decides which of them holds, from what discovery and the interfaces show. Times are monotonic seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from exod.core.base.facts import NO_IPV4, NOBODY_HEARD, PEERS_UNHEARD, Fact
from exod.daemon_api.discovery_state import DiscoveryState
from exod.model import Kind, NodeId
from exod.network.interface_rules import Verdict

AFTER_S: Final = 30.0
"""A peer on the same network is heard within a second or two; a daemon that just started waits for addresses."""

CURE: Final = "name the other nodes in cluster.peers (host:port), or allow UDP port 5353 on both hosts"


class UnheardWatch:
    """`peers`: the nodes that are known, the other ends of links; `discovery` is None where multicast DNS is
    switched off; `expected` what `cluster.peers` names; `remembered` names of nodes that were peers before.
    """

    def __init__(
        self,
        me: NodeId,
        peers: Callable[[], object],
        discovery: Callable[[], DiscoveryState] | None,
        expected: Sequence[str],
        remembered: Callable[[], Sequence[str]],
        interfaces: Callable[[], Sequence[Verdict]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._me, self._peers, self._discovery = me, peers, discovery
        self._expected, self._remembered, self._interfaces = expected, remembered, interfaces
        self._clock, self._since = clock, clock()

    def facts(self) -> tuple[Fact, ...]:
        return (*self._nobody(), *self._cables())

    def _nobody(self) -> tuple[Fact, ...]:
        silent_s = self._clock() - self._since
        if self._peers() or silent_s < AFTER_S:
            return ()
        state = self._discovery() if self._discovery is not None else None
        if self._expected:
            text = f"none of cluster.peers ({', '.join(self._expected)}) has answered since the start"
            return (Fact(PEERS_UNHEARD, self._me, f"{text}: exoctl netcheck says what answers there"),)
        if state is None or state.peers:
            return ()
        return (Fact(NOBODY_HEARD, self._me, f"{self._alone(state)}: {CURE}"),)

    def _alone(self, state: DiscoveryState) -> str:
        if state.announced_on and not state.hears_itself:
            return (
                "this host does not even hear its own multicast DNS, so UDP port 5353 is blocked here and no other "
                "node is found"
            )
        names = ", ".join(sorted(set(self._remembered())))
        known = f" (there was {names} before)" if names else ""
        return f"no other node was heard since the start{known}; if there should be one, multicast may be blocked"

    def _cables(self) -> tuple[Fact, ...]:
        """Thunderbolt without an address. Its ports are members of a bridge that has one, mostly."""
        cables = [one for one in self._interfaces() if one.kind is Kind.THUNDERBOLT and one.up]
        if any(one.addresses for one in cables):
            return ()
        text = "is up and has no IPv4 address, so exod cannot use that cable"
        return tuple(Fact(NO_IPV4, one.name, f"{one.name} {text}") for one in cables)
