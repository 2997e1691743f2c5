"""What `exoctl doctor` says: every finding says what mends it."""

from __future__ import annotations

import pytest

from exod.daemon_api.shapes import CrashLine, NetworkCheck
from exod.diagnostics import findings
from exod.model import Reason


@pytest.mark.parametrize(("value", "is_set"), [("1", True), ("yes", True), ("0", False), ("", False), (" ", False)])
def test_fast_synch_is_told_where_it_is_set(value: str, is_set: bool) -> None:
    found = findings.of_environment({"MLX_METAL_FAST_SYNCH": value, "PATH": "/bin"}, "this shell", "unset it")
    assert [one.code for one in found] == ["fast_synch"] * is_set
    assert all("is set in this shell" in one.text and one.cure == "unset it" for one in found)
    assert findings.of_environment({}, "this shell", "unset it") == []


def test_local_network_privacy_is_named_with_its_cures() -> None:
    (found,) = findings.of_refused_sends(["studio2", "studio2", "studio3"])
    assert (found.code, found.severity) == ("local_network", "error")
    assert "studio2, studio3 (errno 65" in found.text
    assert "Privacy & Security, Local Network" in found.cure
    assert "service install --system" in found.cure
    assert findings.of_refused_sends([]) == []


def test_what_the_workers_mlx_cannot_do_is_a_finding_and_what_it_can_a_fact() -> None:
    versions = {"mlx-lm": "0.32.2", "mlx": "0.32.4"}
    wrong, facts = findings.of_worker(versions, no_native="", has_switch=False)
    assert wrong == []
    assert facts[:2] == ["mlx 0.32.4, mlx-lm 0.32.2", "the switch of mlx_patches is not in this MLX"]
    why = "the native group is not ready: there is no C++ compiler (xcode-select --install)"
    (cannot,), facts = findings.of_worker(versions, no_native=why, has_switch=True)
    assert cannot.code == "no_native_group"
    assert why in cannot.text
    assert cannot.cure == "exoctl engine native build"
    assert facts[1:] == ["the switch of mlx_patches is in this MLX"]


def test_every_other_finding_says_what_mends_it_too() -> None:
    network = [
        NetworkCheck("mdns", "multicast DNS", False, "port 5353 is taken", "lsof"),
        NetworkCheck("a", "b", True, "c"),
    ]
    found = [
        *findings.of_network(network),
        *findings.of_crashes([CrashLine(0.0, "worker crashed", "report it")]),
        *findings.of_strangers(("studio2 (10.0.0.2) was refused", "studio3 (10.0.0.3) was refused")),
        *(
            findings.of_reason(Reason(code, "id", "text", 0.0), "studio1")
            for code in ("engine_failed", "link_slow")
        ),
    ]
    assert [(one.code, one.severity) for one in found] == [
        ("network_mdns", "warning"),
        ("crash_seen", "warning"),
        ("stranger_refused", "warning"),
        ("engine_failed", "error"),
        ("link_slow", "warning"),
    ]
    assert all(one.cure for one in found)
    assert findings.of_strangers(()) == []
