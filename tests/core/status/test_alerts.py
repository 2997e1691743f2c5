"""Reasons of the health as alerts: raised once when they last, cleared once when they are over."""

from __future__ import annotations

from exod.core.status.alerts import Alerts
from exod.core.status.health import HealthSnapshot
from exod.model import Event, Health, Reason

NOBODY = frozenset[str]()


def because(*reasons: Reason, now: float = 0.0) -> HealthSnapshot:
    lasting_s = tuple(now - reason.since for reason in reasons)
    return HealthSnapshot(Health.DEGRADED if reasons else Health.HEALTHY, reasons, lasting_s)


def told(events: list[Event]) -> list[tuple[str, str, object]]:
    return [(event.type, event.subject, event.data["code"]) for event in events]


def test_a_reason_is_raised_when_it_has_lasted_and_cleared_when_it_is_over() -> None:
    alerts, slow = Alerts(), Reason("link_slow", "b", "44 ms", since=10.0)
    assert alerts.changes(because(slow, now=10.5), NOBODY) == []
    (raised,) = alerts.changes(because(slow, now=11.0), NOBODY)
    assert raised.data == {"code": "link_slow", "severity": "warning", "text": "44 ms"}
    assert alerts.changes(because(slow, now=12.0), NOBODY) == [], "once"
    assert told(alerts.changes(because(), NOBODY)) == [("alert.cleared", "b", "link_slow")]
    assert alerts.changes(because(), NOBODY) == []


def test_what_comes_and_goes_is_no_alert() -> None:
    alerts = Alerts()
    for at in (0.0, 5.0, 10.0):
        assert (
            alerts.changes(because(Reason("engine_recovering", "a", "moves", since=at), now=at + 0.2), NOBODY) == []
        )
        assert alerts.changes(because(), NOBODY) == []


def test_what_a_rank_told_by_its_cause_is_not_told_again() -> None:
    failed = because(Reason("engine_failed", "a", "b: no such folder", since=3.0), now=4.0)
    assert Alerts().changes(failed, frozenset({"engine_failed"})) == []
    (raised,) = Alerts().changes(failed, NOBODY)
    assert (raised.type, raised.data["severity"]) == ("alert.raised", "error")
