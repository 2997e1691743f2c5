"""The plot of `exoctl links history`."""

from __future__ import annotations

from exod.cli.base.paint import Paint, cells_of
from exod.cli.screens.rtt_plot import rtt_plot
from exod.daemon_api.shapes import PathTrace
from exod.model import Kind, NodeId, PathId

PLAIN = Paint(color=False)
NONE: tuple[float | None, ...] = (None,)


def trace(interface: str, rtt_ms: tuple[float | None, ...], selected: tuple[bool, ...] = ()) -> PathTrace:
    used = selected or (False,) * len(rtt_ms)
    return PathTrace(NodeId("b"), "studio2", PathId(interface), interface, Kind.ETHERNET, 5.0, rtt_ms, used)


def test_a_cut_and_a_switch_are_seen() -> None:
    cable = trace("bridge0", (0.2,) * 6 + NONE * 3 + (0.2,) * 3, (True,) * 6 + (False,) * 3 + (True,) * 3)
    ethernet = trace("en0", (0.8,) * 12, (False,) * 6 + (True,) * 3 + (False,) * 3)
    assert rtt_plot([cable, ethernet], PLAIN, 80) == [
        "studio2  the last 60 s, 5 s a column, 0.200 ms to 0.800 ms",
        "  bridge0  ▁▁▁▁▁▁   ▁▁▁  0.200 ms to 0.200 ms",
        "           ━━━━━━   ━━━  in use",
        "  en0      ████████████  0.800 ms to 0.800 ms",
        "                 ━━━  in use",
        "",
    ]


def test_a_column_shows_the_worst_of_its_samples_and_no_line_is_too_long() -> None:
    rtts = tuple(44.0 if at == 300 else 0.3 for at in range(720))
    for width in (40, 80, 200):
        lines = rtt_plot([trace("bridge0", rtts, (True,) * 720)], PLAIN, width)
        assert lines[1].count("█") == 1
        assert max(cells_of(line) for line in lines[1:]) <= width
    assert lines[0].startswith("studio2  the last 60 min, ")


def test_a_younger_path_begins_further_right_and_a_silent_one_is_left_out() -> None:
    lines = rtt_plot([trace("en0", (1.0, 1.0, 1.0)), trace("en1", (2.0,)), trace("en2", NONE * 3)], PLAIN, 80)
    assert [line.rstrip() for line in lines[1:3]] == [
        "  en0  ▁▁▁  1.00 ms to 1.00 ms",
        "  en1    █  2.00 ms to 2.00 ms",
    ]
    assert not any("en2" in line for line in lines)
    assert rtt_plot([trace("en2", NONE)], PLAIN, 80) == []
    assert rtt_plot([], PLAIN, 80) == []


def test_a_terminal_without_unicode_has_its_own_bars() -> None:
    lines = rtt_plot([trace("en0", (1.0, 8.0), (True, True))], Paint(color=False, unicode=False), 80)
    assert lines[1:3] == ["  en0  .@  1.00 ms to 8.00 ms", "       ==  in use"]
