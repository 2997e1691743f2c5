"""One sample each five seconds for an hour, of paths that live."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from exod.model import Kind, PathState
from exod.status.rtt_history import EVERY_S, MAX_PATHS, SAMPLES, RttHistory


def path(name: str, rtt_ms: float | None, *, selected: bool = False, state: PathState = PathState.UP) -> Any:
    return SimpleNamespace(
        id=name, interface=name, kind=Kind.ETHERNET, rtt_ms=rtt_ms, selected=selected, state=state
    )


def link(*paths: Any, peer: str = "b") -> Any:
    return SimpleNamespace(peer=peer, peer_name=f"studio-{peer}", paths=paths)


def test_samples_say_how_long_and_whether_it_was_in_use() -> None:
    history = RttHistory()
    history.observe([link(path("en0", 1.23456, selected=True), path("en1", 3.0))])
    history.observe([link(path("en0", 9.0, state=PathState.DEAD), path("en1", 3.5, selected=True))])
    cable, wireless = history.traces(None)
    assert (cable.rtt_ms, cable.selected) == ((1.235, None), (True, False))
    assert (wireless.rtt_ms, wireless.selected) == ((3.0, 3.5), (False, True))
    assert cable.every_s == EVERY_S
    assert history.traces("b") == history.traces(None)  # type: ignore[arg-type]
    assert history.traces("c") == ()  # type: ignore[arg-type]


def test_an_hour_is_kept_and_a_path_that_is_gone_is_forgotten_after_it() -> None:
    history = RttHistory()
    history.observe([link(path("en0", 1.0))])
    for _ in range(SAMPLES - 1):
        history.observe([link(path("en1", 2.0))])
    assert [len(trace.rtt_ms) for trace in history.traces(None)] == [SAMPLES, SAMPLES - 1]
    history.observe([link(path("en1", 2.0))])
    assert [trace.interface for trace in history.traces(None)] == ["en1"]


def test_no_number_of_paths_fills_the_memory() -> None:
    history = RttHistory()
    history.observe([link(*(path(f"en{number}", 1.0) for number in range(2 * MAX_PATHS)))])
    assert len(history.traces(None)) == MAX_PATHS
