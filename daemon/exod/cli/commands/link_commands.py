"""`exoctl links`, `ping` and `netcheck`: every path, one path, and this host's own network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exod.cli.base.options import Commands, Shell, UsageError
from exod.cli.base.values import name, whole
from exod.cli.commands.status_commands import add_watch, is_broken
from exod.errors import ExitCode

if TYPE_CHECKING:
    from exod.daemon_api.shapes import LinksReport, NetcheckReport

HISTORY = "history"
HISTORY_ENTRIES = 50

MAX_PINGS = 100_000
"""What the daemon takes: more than an hour of them."""


def register(commands: Commands) -> None:
    parser = commands.add("links", links)
    parser.add_argument(
        "peer", nargs="?", type=name, metavar="PEER|history", help="a node's name or id, or: history"
    )
    parser.add_argument("history_peer", nargs="?", type=name, metavar="PEER", help="with history: only this node's")
    add_watch(parser)

    parser = commands.add("ping", ping)
    parser.add_argument("peer", type=name, metavar="PEER", help="a node's name or id")
    parser.add_argument(
        "--via", type=name, metavar="IFACE", help="an interface, path id or kind; default: the path in use"
    )
    parser.add_argument(
        "-c", "--count", type=whole(1, MAX_PINGS), metavar="N", default=5, help="how many probes; default: 5"
    )

    commands.add("netcheck", netcheck)


def links(shell: Shell, peer: str | None, history_peer: str | None, watch: bool) -> ExitCode:
    """Every path, and why it is in use or not. `links history`: each decision with its figures."""
    from exod.cli.screens.links import links_screen
    from exod.cli.screens.reports import show_report, watch_report
    from exod.daemon_api.shapes import LinksReport

    if peer == HISTORY:
        return _history(shell, history_peer)
    if history_peer is not None:
        raise UsageError(f"one peer at a time; unexpected: {history_peer}")

    def screen(report: LinksReport) -> list[str]:
        return links_screen(report, shell.paint(), shell.width)

    if watch:
        return watch_report(shell, "links", LinksReport, screen, _links_code, peer=peer)
    return _links_code(show_report(shell, "links", LinksReport, screen, peer=peer))


def _links_code(report: LinksReport) -> ExitCode:
    """5 where a pair has no path or its ends disagree, 4 where a path in use is not what it should be. A peer that
    said goodbye does not count.
    """
    from exod.model import PathState

    present = [link for link in report.links if not link.peer_left]
    if any(map(is_broken, present)):
        return ExitCode.NO_PATH
    used = [path for link in present for path in link.paths if path.id == link.selected]
    return ExitCode.OK if all(path.state is PathState.UP for path in used) else ExitCode.DEGRADED


def _history(shell: Shell, peer: str | None) -> ExitCode:
    from exod.cli.screens.links import history_screen
    from exod.cli.screens.reports import show_report
    from exod.cli.screens.rtt_plot import rtt_plot
    from exod.daemon_api.shapes import LinkHistoryReport

    def screen(report: LinkHistoryReport) -> list[str]:
        paint = shell.paint()
        plot = rtt_plot(report.traces, paint, shell.width)
        return [*plot, *history_screen(report.decisions, paint, shell.width)]

    show_report(shell, "links_history", LinkHistoryReport, screen, peer=peer, limit=HISTORY_ENTRIES)
    return ExitCode.OK


def ping(shell: Shell, peer: str, via: str | None, count: int) -> ExitCode:
    """The round trip over one path, which it names. 5 where nothing was answered."""
    import msgspec

    from exod.cli.screens.links import ping_line, ping_summary, ping_summary_line
    from exod.daemon_api.shapes import PingReply

    paint = shell.paint()
    replies: list[PingReply] = []
    decoder = msgspec.json.Decoder(PingReply)
    with shell.daemon() as daemon:
        for reply in daemon.stream("ping", decoder, peer=peer, via=via, count=count):
            if reply is not None:
                replies.append(reply)
                if not shell.as_json:
                    shell.show([ping_line(reply, paint)])
    summary = ping_summary(replies)
    if shell.as_json:
        shell.show_value({"peer": peer, "replies": replies, **summary})
    else:
        shell.show([ping_summary_line(summary, paint)])
    return ExitCode.OK if summary["answered"] else ExitCode.NO_PATH


def netcheck(shell: Shell) -> ExitCode:
    """This host's interfaces, and what makes each eligible or not. Then mDNS and ports."""
    from exod.cli.base.client import COMMAND_DEADLINE_S
    from exod.cli.screens.links import netcheck_screen
    from exod.cli.screens.reports import show_report
    from exod.daemon_api.shapes import NetcheckReport

    def screen(report: NetcheckReport) -> list[str]:
        return netcheck_screen(report, shell.paint(), shell.width)

    return _netcheck_code(show_report(shell, "netcheck", NetcheckReport, screen, COMMAND_DEADLINE_S))


def _netcheck_code(report: NetcheckReport) -> ExitCode:
    if not any(interface.eligible for interface in report.interfaces):
        return ExitCode.NO_PATH
    return ExitCode.OK if all(check.ok for check in report.checks) else ExitCode.DEGRADED
