"""Makes a pair's outgoing datagrams and knows when each path's next one is due.

Decides when to send and fills the datagram; never judges what comes back. Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

from exod.core.base.events import SendDatagram
from exod.core.base.journal import Journal
from exod.core.probe import probe_interval
from exod.core.probe.candidate_paths import Candidate
from exod.core.probe.datagram import MAX_INTERVAL_MS, MAX_PATHS, Datagram, encode
from exod.core.probe.path import Path
from exod.model import NodeCard, NodeState, PathId, Selection

URGENT_FOR_S = 0.30
"""How long one miss keeps us asking for fast answers: past the verdict on a cable (200 ms)."""
ANSWER_FOR_S = 0.10
"""How long one urgent datagram makes the other end answer fast: while it is needed, another comes 20 ms later."""


class ProbeSender:
    def __init__(self, me: NodeCard, peer: NodeCard, key: bytes, journal: Journal, seed: int) -> None:
        self.me = me
        self.peer = peer
        self.key = key
        """Of the MAC: the newest that the peer is known to have."""
        self._journal = journal
        self._jitter = probe_interval.Jitter(seed ^ int(me.id, 16) ^ (int(peer.id, 16) << 1))
        self._order = 0
        self._highest_seq = 0
        self._urgent_until = 0.0
        self._answer_until = 0.0
        self.burst_since = 0.0
        self.edge = True
        """Do the two nodes share a ring edge, or is the cluster so small that all pairs are watched closely?"""
        self.quiet = False
        """Is nothing generated here that waits for a link?"""
        self.epoch_number = 0
        self.plan_prefix = ""
        self.misses = False

    def first_seq(self) -> int:
        """Where a new path's numbers begin: above all earlier ones, so a path that comes again starts fresh."""
        return self._highest_seq

    # --- pace ---------------------------------------------------------------------------------------------------

    def hurry(self, now: float) -> bool:
        """Something is missed here: burst, and ask the peer to. Returns whether this began a burst."""
        began = self._began(now)
        self._urgent_until = now + URGENT_FOR_S
        return began

    def calm_down(self) -> None:
        """What was missed came."""
        self._urgent_until = 0.0

    def answer_urgent(self, now: float) -> bool:
        """The peer misses something. Returns whether this began a burst."""
        began = self._began(now)
        self._answer_until = now + ANSWER_FOR_S
        return began

    def _began(self, now: float) -> bool:
        began = not self.bursting(now)
        if began:
            self.burst_since = now
        return began

    def bursting(self, now: float) -> bool:
        return now < self._urgent_until or now < self._answer_until

    def hasten(self, paths: Iterable[Path], now: float, within_s: float = 0.0) -> None:
        """Send on these paths by `now + within_s`."""
        for path in paths:
            path.send_by(now + within_s)

    # --- datagrams ----------------------------------------------------------------------------------------------

    def send(
        self,
        path: Path,
        paths: Iterable[Path],
        *,
        selection: Selection | None,
        wish: PathId | None,
        peer_incarnation: int,
        peer_state: NodeState,
        peer_since: float,
        now: float,
        goodbye: bool = False,
    ) -> None:
        """Make and command one datagram on `path`, and set when its next one is due."""
        selected = selection is not None and selection.path == path.candidate.path
        steady = probe_interval.announced_s(
            path,
            selected=selected,
            edge=self.edge,
            quiet=self.quiet,
            peer=peer_state,
            peer_since=peer_since,
            now=now,
        )
        self._schedule(path, steady, peer_state, now)
        seq = path.next_seq()
        self._highest_seq = max(self._highest_seq, seq)
        self._order += 1
        candidate = path.candidate
        faulted = now < path.fault_until
        if faulted and path.fault_drop:
            return
        datagram = Datagram(
            sender=self.me.id,
            destination=self.peer.id,
            sender_incarnation=self.me.incarnation,
            destination_incarnation=peer_incarnation,
            seq=seq,
            order=self._order,
            source_address=candidate.local.address,
            target_address=candidate.remote.address,
            interval_ms=min(MAX_INTERVAL_MS, round(steady * 1_000)),
            echo_seq=path.echo_seq,
            hold_ns=path.hold_ns(now),
            epoch_number=self.epoch_number,
            plan_prefix=self.plan_prefix,
            misses=self.misses,
            selection=selection,
            wish=wish,
            reports=tuple(one.report() for one in paths)[:MAX_PATHS],
            goodbye=goodbye,
            urgent=now < self._urgent_until,
        )
        if faulted:
            path.stamp(seq, now)  # the shell's own stamp would come after the delay and hide it
        self._command(candidate, datagram, path.fault_delay_s if faulted else 0.0)

    def _command(self, candidate: Candidate, datagram: Datagram, delay_s: float) -> None:
        self._journal.command(
            SendDatagram(
                peer=self.peer.id,
                path=candidate.path,
                seq=datagram.seq,
                interface=candidate.local.interface,
                local_address=candidate.local.address,
                remote_address=candidate.remote.address,
                remote_port=self.peer.mesh_port,
                data=encode(datagram, self.key),
                delay_s=delay_s,
            )
        )

    def _schedule(self, path: Path, steady: float, peer_state: NodeState, now: float) -> None:
        pace = path.announce(steady, probe_interval.LINGER)
        if peer_state is not NodeState.DOWN:
            if self.bursting(now):
                pace = probe_interval.BURST_S
            elif probe_interval.measuring(path, now):
                pace = min(pace, probe_interval.MEASURING_S)
            else:
                pace = min(pace, probe_interval.proving_s(path, self.edge) or pace)
        path.schedule(now + self._jitter.gap_s(pace), now + probe_interval.SHORTEST_GAP * pace)
