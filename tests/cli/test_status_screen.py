"""The status screen against golden files: what a person sees is a product, and changes only on purpose.

After a change that is meant: `EXOD_UPDATE_GOLDEN=1 pytest tests/cli/test_status_screen.py`, then read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from exod.cli.base.paint import Cell, Paint, cells_of, duration, fit, mib, ms, percent, wrap
from exod.cli.screens.status import status_screen, widest
from exod.daemon_api.shapes import CrashLine, RankLine, StatusReport
from exod.model import EngineState, NodeState, Reason
from tests.sample_reports import STARTED_AT, alone_status, pair_status, peer_gone_status, vpn_only_status

GOLDEN = Path(__file__).parent / "golden"

SCREENS = {
    "pair": pair_status,
    "vpn_only": vpn_only_status,
    "alone": alone_status,
    "peer_down": lambda: peer_gone_status(left=False),
    "peer_left": lambda: peer_gone_status(left=True),
}


def screen(status: StatusReport, *, width: int = 100, color: bool = False, unicode: bool = True) -> list[str]:
    return status_screen(status, Paint(color=color, unicode=unicode), width, STARTED_AT)


@pytest.mark.parametrize("name", SCREENS)
def test_the_screen_is_the_golden_one(name: str) -> None:
    shown = "\n".join(screen(SCREENS[name]())) + "\n"
    file = GOLDEN / f"status_{name}.txt"
    if os.environ.get("EXOD_UPDATE_GOLDEN"):
        file.write_text(shown)
    assert shown == file.read_text()


@pytest.mark.parametrize("name", SCREENS)
@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_screen_fits_its_terminal(name: str, width: int) -> None:
    assert widest(screen(SCREENS[name](), width=width)) <= width


@pytest.mark.parametrize("name", SCREENS)
def test_colour_changes_no_letter_and_always_ends(name: str) -> None:
    plain, colored = screen(SCREENS[name]()), screen(SCREENS[name](), color=True)
    assert [cells_of(line) for line in colored] == [cells_of(line) for line in plain]
    assert any("\x1b[" in line for line in colored)
    for line in colored:
        assert line.rfind("\x1b[0m") >= line.rfind("\x1b[3"), "no colour runs into the next line"


def test_without_unicode_the_screen_is_ascii() -> None:
    for make in SCREENS.values():
        assert "\n".join(screen(make(), unicode=False)).isascii()


def test_health_and_its_reasons_come_first() -> None:
    first, reason = screen(vpn_only_status())[:2]
    assert first.startswith("▲ degraded  studio1")
    assert "the only path to studio2 is the VPN on utun4 at 44.1 ms" in reason


def test_a_peer_has_one_line_that_names_the_link_and_its_rtt() -> None:
    (line,) = [line for line in screen(pair_status()) if "p90" in line]
    assert line.split()[:6] == ["links", "●", "studio2", "bridge0", "thunderbolt", "0.312"]


def test_a_link_that_the_ends_do_not_agree_on_says_so() -> None:
    status = pair_status()
    link = msgspec.structs.replace(status.links[0], agreed=False)
    (line,) = [line for line in screen(msgspec.structs.replace(status, links=(link,))) if "0.312 ms" in line]
    assert "▲ studio2" in line
    assert "not agreed by both ends" in line


def test_a_peer_without_a_path_says_why() -> None:
    status = vpn_only_status()
    link = msgspec.structs.replace(status.links[0], selected=None)
    text = "\n".join(screen(msgspec.structs.replace(status, links=(link,))))
    assert "✖ studio2  no path (bridge0: silent)" in text


def test_a_node_that_is_down_and_another_version_are_seen() -> None:
    status = pair_status()
    here, peer = status.nodes
    peer = msgspec.structs.replace(peer, state=NodeState.DOWN, version="0.0.9")
    text = "\n".join(screen(msgspec.structs.replace(status, nodes=(here, peer))))
    assert "✖ studio2  down  exod 0.0.9" in text


def test_what_failed_is_said_once_and_by_name() -> None:
    text = "the model folder /models/x does not exist"
    status = alone_status()
    engine = msgspec.structs.replace(
        status.engine, state=EngineState.FAILED, text=text, ranks=(RankLine(status.node.id, 0, (0, 0), None, 0),)
    )
    reason = Reason("engine.failed", status.node.id, text, STARTED_AT)
    shown = "\n".join(screen(msgspec.structs.replace(status, engine=engine, reasons=(reason,))))
    assert shown.count(text) == 1
    assert f"studio1: {text}" in shown
    assert "rank 0  studio1  no layers yet  no process" in shown


def test_names_of_strangers_cannot_drive_the_terminal() -> None:
    status = pair_status()
    peer = msgspec.structs.replace(status.nodes[1], name="evil\x1b[2J\x07\u202ename")
    lines = screen(msgspec.structs.replace(status, nodes=(status.nodes[0], peer)), color=True)
    text = "\n".join(lines)
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "evil" in text


def test_wide_characters_keep_the_columns_straight() -> None:
    paint = Paint(color=False)
    first, second = paint.columns([[Cell("机器一"), Cell("x")], [Cell("abc"), Cell("x")]])
    assert cells_of(first.split("x")[0]) == cells_of(second.split("x")[0]) == 8


def test_a_line_is_cut_to_the_terminal_with_its_colour_ended() -> None:
    line = "\x1b[32m" + "g" * 60 + "\x1b[0m tail"
    cut = fit(line, 40)
    assert cells_of(cut) == 40
    assert cut.endswith("…\x1b[0m")
    assert fit("short", 40) == "short"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (ms(None), "-"),
        (ms(0.0), "0.000 ms"),
        (ms(0.3125), "0.312 ms"),
        (ms(5.0), "5.00 ms"),
        (ms(44.12), "44.1 ms"),
        (ms(1234.5), "1234 ms"),
        (percent(0.0), "0 %"),
        (percent(0.014), "1.4 %"),
        (percent(1.0), "100 %"),
        (duration(0), "0 s"),
        (duration(-3), "0 s"),
        (duration(200), "3 min 20 s"),
        (duration(3600), "1 h"),
        (duration(11_543), "3 h 12 min"),
        (duration(190_000), "2 d 4 h"),
        (mib(9 * 2**20), "9.0 MiB"),
        (mib(70 * 2**30), "70.0 GiB"),
        (mib(None), "-"),
    ],
)
def test_figures_carry_their_unit(shown: str, expected: str) -> None:
    assert shown == expected


def test_words_are_wrapped_between_words() -> None:
    assert wrap("one two three four five six", 20) == ["one two three four", "five six"]
    assert wrap("", 20) == [""]


def test_a_crash_says_when_what_and_what_to_do() -> None:
    crash = CrashLine(STARTED_AT - 130.0, "worker (pid 812) crashed with SIGABRT", "report it")
    lines = screen(msgspec.structs.replace(pair_status(), crashes=(crash,)))
    assert "crash    ▲ 2 min 10 s ago worker (pid 812) crashed with SIGABRT" in lines
    assert " " * 11 + "report it" in lines
