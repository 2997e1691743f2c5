"""Who is refused is told for as long as it tries, and no longer."""

from __future__ import annotations

import ssl

import pytest

from exod.peers.rejected_peers import SHOWN_S, SKEW_SHOWN_S, ForeignVersions, Strangers
from tests.peers.test_control_plane import B


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that is now, in seconds."""
    now = [1000.0]
    monkeypatch.setattr("exod.peers.rejected_peers.time.monotonic", lambda: now[0])
    return now


def refusal() -> ssl.SSLError:
    error = ssl.SSLError(1, "certificate verify failed")
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    return error


def test_a_stranger_is_a_reason_for_as_long_as_it_tries(clock: list[float]) -> None:
    strangers = Strangers()
    assert strangers.facts("home") == ()
    for _ in range(4):
        strangers.note("10.0.0.9", "studio9", refusal())
        (fact,) = strangers.facts("home")
        assert (fact.code, fact.subject) == ("other_key", "10.0.0.9")
        clock[0] += SHOWN_S - 1
        assert strangers.facts("home") == (fact,)
    clock[0] += 2
    assert strangers.facts("home") == ()


def test_a_peer_of_another_version_is_a_reason_for_as_long_as_it_tries(clock: list[float]) -> None:
    versions = ForeignVersions(3)
    versions.note(B, "studio2", 4)
    (fact,) = versions.facts("studio1")
    assert (fact.code, fact.subject) == ("version_skew", B)
    clock[0] += SKEW_SHOWN_S + 1
    assert versions.facts("studio1") == ()
