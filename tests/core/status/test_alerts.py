"""What is wrong as alerts: raised once when it lasts, cleared once when it is over."""

from __future__ import annotations

from exod.alert_table import kind_of
from exod.core.status.alerts import AlertFact, Alerts, alert_facts
from exod.core.status.health import HealthSnapshot
from exod.model import Event, Health, NodeId, Reason

ME = NodeId("a")


def because(*reasons: Reason, now: float = 0.0, failure: tuple[str, str] | None = None) -> list[AlertFact]:
    lasting_s = tuple(now - reason.since for reason in reasons)
    health = HealthSnapshot(Health.DEGRADED if reasons else Health.HEALTHY, reasons, lasting_s)
    return alert_facts(ME, health, failure)


def told(events: list[Event]) -> list[tuple[str, str, object]]:
    return [(event.type, event.subject, event.data["code"]) for event in events]


def test_a_reason_is_raised_when_it_has_lasted_and_cleared_when_it_is_over() -> None:
    alerts, slow = Alerts(), Reason("link_slow", "b", "44 ms", since=10.0)
    assert alerts.changes(because(slow, now=10.5)) == []
    (raised,) = alerts.changes(because(slow, now=11.0))
    assert raised.data == {
        "code": "link_slow",
        "severity": "warning",
        "text": "44 ms",
        "cure": kind_of("link_slow").cure,
    }
    assert alerts.changes(because(slow, now=12.0)) == [], "once"
    assert told(alerts.changes(because())) == [("alert.cleared", "b", "link_slow")]
    assert alerts.changes(because()) == []


def test_what_comes_and_goes_is_no_alert() -> None:
    alerts = Alerts()
    for at in (0.0, 5.0, 10.0):
        recovering = Reason("engine_recovering", "a", "moves", since=at)
        assert alerts.changes(because(recovering, now=at + 0.2)) == []
        assert alerts.changes(because()) == []


FAILED = Reason("engine_failed", "a", "b: no such folder", since=3.0)


def test_the_own_ranks_failure_is_told_by_its_cause_and_not_a_second_time_as_a_failed_engine() -> None:
    alerts, failure = Alerts(), ("no_folder", "there is no such folder")
    (raised,) = alerts.changes(because(FAILED, now=4.0, failure=failure))
    assert (raised.type, raised.subject) == ("alert.raised", "a")
    cure = kind_of("no_folder").cure
    text = "there is no such folder"
    assert raised.data == {"code": "no_folder", "severity": "error", "text": text, "cure": cure}
    assert alerts.changes(because(FAILED, now=5.0, failure=failure)) == [], "once"
    assert told(alerts.changes(because())) == [("alert.cleared", "a", "no_folder")]


def test_another_ranks_failure_is_a_failed_engine_and_an_error() -> None:
    (raised,) = Alerts().changes(because(FAILED, now=4.0))
    assert (raised.type, raised.data["code"], raised.data["severity"]) == ("alert.raised", "engine_failed", "error")


def test_another_cause_replaces_the_alert_of_the_first() -> None:
    alerts = Alerts()
    alerts.changes(because(failure=("no_folder", "there is no such folder")))
    changes = alerts.changes(because(failure=("bad_file", "torn")))
    assert told(changes) == [("alert.cleared", "a", "no_folder"), ("alert.raised", "a", "bad_file")]
