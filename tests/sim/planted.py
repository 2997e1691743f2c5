"""Bugs planted on purpose: the simulator must find each. `python -m tests.sim --plant NAME` shows the story.

Each is a small change of the core such as a tired hand makes, applied to the running program and taken back.
docs/simulation.md records seed and story of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import msgspec

from exod.core.cluster import unanimous_ack
from exod.core.pair import dead_detection, link, path_selection
from exod.core.probe.datagram import Datagram
from tests.sim.engine.planted import PLANTED as IN_THE_ENGINE
from tests.sim.invariants import InvariantBrokenError


def _drop_the_incarnation_check() -> Any:
    """Datagrams of any life are taken for those of the present ones."""
    receive = link.Link.receive

    def careless(self: link.Link, datagram: Datagram, *rest: Any) -> None:
        lives = {
            "sender_incarnation": max(datagram.sender_incarnation, self.peer_incarnation),
            "destination_incarnation": self.me.incarnation,
        }
        receive(self, msgspec.structs.replace(datagram, **lives), *rest)

    return mock.patch.object(link.Link, "receive", careless)


def _let_both_sides_select() -> Any:
    def by_id(self: link.Link) -> tuple[int, int]:
        pair = (self.me.incarnation, self.peer_incarnation)
        return pair if self.me.id < self.peer.id else (pair[1], pair[0])

    return mock.patch.multiple(link.Link, selects=property(lambda self: True), _incarnations=property(by_id))


def _forget_the_dwell() -> Any:
    return mock.patch.object(path_selection, "DWELL_S", 0.0)


def _declare_dead_without_witness() -> Any:
    return mock.patch.object(dead_detection, "_witness", lambda silent, paths, late_enough: silent)


def _commit_without_all_acks() -> Any:
    return mock.patch.object(unanimous_ack.Ballot, "unanimous", property(lambda self: len(self.missing) <= 1))


def _accept_replays() -> Any:
    return mock.patch("exod.core.probe.replay_window.SequenceWindow.accept", lambda self, seq: _remember(self, seq))


def _remember(window: Any, seq: int) -> bool:
    window.newest = max(window.newest, seq)
    return True


PLANTED = {
    "incarnation": (_drop_the_incarnation_check, "4"),
    "both-select": (_let_both_sides_select, "2"),
    "dwell": (_forget_the_dwell, "7"),
    "witness": (_declare_dead_without_witness, "9"),
    "acks": (_commit_without_all_acks, "5"),
    "replay": (_accept_replays, "12"),
}
"""Name -> (the bug, the invariant that it breaks)."""


def find(name: str, scenario: Callable[[int], object], seeds: Iterable[int], mark: str) -> tuple[int, str]:
    """With the bug planted: the first seed whose story has `mark` in its first line, and the story; -1 where there
    is none.
    """
    for seed in seeds:
        with planted(name):
            try:
                scenario(seed)
            except InvariantBrokenError as error:
                if mark in str(error).partition("\n")[0]:
                    return seed, str(error)
    return -1, ""


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """A bug of the mesh's core or of the engine's."""
    if name is None:
        yield
        return
    bug, _ = (PLANTED | IN_THE_ENGINE)[name]
    with bug():
        yield
