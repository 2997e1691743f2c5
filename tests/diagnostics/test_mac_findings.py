"""What a Mac keeps from a service: each with what to do."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from exod.diagnostics.mac_findings import of_firewall, of_protected_folders, of_sleep

HOME = PurePosixPath("/Users/me")

PMSET = """System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 hibernatefile        /var/vm/sleepimage
 powernap             1
 networkoversleep     0
 disksleep            10
 sleep                {} (sleep prevented by powerd)
 displaysleep         10
 ttyskeepawake        1
 womp                 1
"""
"""The form of `pmset -g`, constructed from its manual: not recorded on a Mac."""


@pytest.mark.parametrize(
    ("place", "guard"),
    [
        ("/Users/me/Documents/exod/.venv", "/Users/me/Documents"),
        ("/Users/me/Desktop/models/qwen", "/Users/me/Desktop"),
        ("/Users/me/Downloads/exod", "/Users/me/Downloads"),
        ("/Users/me/Library/Mobile Documents/com~apple~CloudDocs/exod", "/Users/me/Library/Mobile Documents"),
        ("/Volumes/Models/qwen", "/Volumes"),
    ],
)
def test_a_protected_folder_is_named_with_what_lies_in_it(place: str, guard: str) -> None:
    (finding,) = of_protected_folders({"the model": PurePosixPath(place)}, HOME)
    assert finding.subject == "the model"
    assert f"lies in {guard} ({place})" in finding.text
    assert "Full Disk Access" in finding.cure


@pytest.mark.parametrize(
    "place", ["/Users/me/exod/.venv", "/Users/me/DocumentsOfMine/x", "/opt/models", "/Volumes2"]
)
def test_other_folders_are_fine(place: str) -> None:
    assert of_protected_folders({"the environment": PurePosixPath(place)}, HOME) == []


def test_a_mac_that_sleeps_is_told_the_command() -> None:
    (finding,) = of_sleep(PMSET.format(10))
    assert "after 10 min" in finding.text
    assert finding.cure == "sudo pmset -c sleep 0"


@pytest.mark.parametrize("text", [PMSET.format(0), "", "something else"])
def test_a_mac_that_never_sleeps_or_does_not_tell_is_fine(text: str) -> None:
    assert of_sleep(text) == []


def test_a_firewall_that_asks_is_a_fact_and_one_that_blocks_all_a_fault() -> None:
    assert of_firewall("Firewall is disabled. (State = 0) \n") == of_firewall("") == ([], "")
    findings, fact = of_firewall("Firewall is enabled. (State = 1) \n")
    assert findings == []
    assert "exod and Python must be allowed" in fact
    ((finding,), fact) = of_firewall("Firewall is blocking all non-essential incoming connections. (State = 2) \n")
    assert fact == ""
    assert finding.severity == "error"
    assert "Block all incoming connections" in finding.cure
