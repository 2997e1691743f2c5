"""`exoctl events`: the bounded event log, and what happens from now on."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from exod.cli.base.options import Commands, Shell, UsageError
from exod.cli.base.values import name
from exod.cli.commands.engine_commands import DURATION, SECONDS
from exod.errors import ExitCode

if TYPE_CHECKING:
    from exod.cli.base.client import DaemonClient
    from exod.cli.base.paint import Paint


def register(commands: Commands) -> None:
    parser = commands.add("events", events)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens, until Ctrl-C")
    times = "Unix seconds, a time (2026-01-31T12:00), or an age (10m, 2h, 2d)"
    parser.add_argument("--since", metavar="T", help=times)
    parser.add_argument(
        "--type", type=name, metavar="GLOB", dest="kind", help="only these, such as path.* or engine.reformed"
    )
    parser.add_argument("--node", type=name, metavar="NODE", help="only what concerns this node, by its name or id")


def events(shell: Shell, follow: bool, since: str | None, kind: str | None, node: str | None) -> ExitCode:
    """The event log, oldest first. With --json one event a line. Without a running exod, what it wrote."""
    from exod.cli.base.client import NoDaemonError

    paint = shell.paint()
    start = None if since is None else moment(since, time.time())
    try:
        try:
            with shell.daemon() as daemon:
                names = _names(daemon) if node is not None or not shell.as_json else {}
                wanted = _wanted(kind, node, names)
                _show(shell, (one for one in _told(daemon, start, follow) if wanted(one)), names, paint)
        except NoDaemonError:
            if follow or not _has_written(shell):
                raise
            kept = list(_kept(shell))
            names = _told_names(kept)
            wanted = _wanted(kind, node, names)
            _show(shell, (one for one in kept if one["ts"] > (start or -math.inf) and wanted(one)), names, paint)
    except KeyboardInterrupt:
        if not follow:
            raise
    return ExitCode.OK


def _show(shell: Shell, events: Iterable[dict[str, Any]], names: dict[str, str], paint: Paint) -> None:
    import msgspec

    for event in events:
        if shell.as_json:
            shell.show_json_line(msgspec.json.encode(event))
        else:
            shell.show([_line(event, names, paint)])


def _told(daemon: DaemonClient, start: float | None, follow: bool) -> Iterator[dict[str, Any]]:
    import msgspec

    decoder = msgspec.json.Decoder(dict[str, Any])
    for event in daemon.stream("events", decoder, since=start, follow=follow):
        if event is not None:
            yield event


def _has_written(shell: Shell) -> bool:
    from exod.diagnostics.event_log import EVENTS_FILE

    return (shell.socket_path().parent / EVENTS_FILE).exists()


def _kept(shell: Shell) -> Iterator[dict[str, Any]]:
    """What lies beside the control socket of an exod that does not run."""
    from exod.daemon_api.shapes import flat_event
    from exod.diagnostics.event_log import kept_events

    folder = shell.socket_path().parent
    kept = kept_events(folder).events
    print(f"exoctl: no exod is running here; {len(kept)} events that it wrote to {folder}", file=sys.stderr)
    yield from map(flat_event, kept)


def _told_names(events: Iterable[dict[str, Any]]) -> dict[str, str]:
    """What events say themselves of who is called how: there is no daemon to ask."""
    names: dict[str, str] = {}
    for event in events:
        if str(event["type"]).startswith("node.") and isinstance(event.get("name"), str):
            names[str(event["subject"])] = event["name"]
        if isinstance(event.get("peer"), str) and isinstance(event.get("peer_name"), str):
            names[event["peer"]] = event["peer_name"]
    return names


def _wanted(kind: str | None, node: str | None, names: dict[str, str]) -> Callable[[dict[str, Any]], bool]:
    """Is an event to be shown? A node is meant by its id, its name, or the beginning of its id."""
    ids = {one for one, name in names.items() if node is not None and (name == node or one.startswith(node))}
    if node is not None and names and not ids:
        raise UsageError(f"there is no node '{node}'; there are: {', '.join(names.values())}")

    def wanted(event: dict[str, Any]) -> bool:
        if kind is not None and not fnmatchcase(str(event.get("type", "")), kind):
            return False
        return node is None or any(
            node == value or value in ids for value in event.values() if isinstance(value, str)
        )

    return wanted


def _names(daemon: DaemonClient) -> dict[str, str]:
    from exod.daemon_api.shapes import StatusReport

    return {node.id: node.name for node in daemon.ask("status", StatusReport).nodes}


def _line(event: dict[str, Any], names: dict[str, str], paint: Paint) -> str:
    from exod.cli.base.paint import Cell
    from exod.cli.screens.links import clock

    subject = names.get(event["subject"], event["subject"])
    shown = {name: _value(value, names) for name, value in event.items() if name not in ("ts", "type", "subject")}
    # A name is printed once: as the subject, or beside the path that it is about.
    said = {"name": subject, "peer_name": shown.get("peer", subject)}
    details = ", ".join(f"{name} {text}" for name, text in shown.items() if text and text != said.get(name))
    return paint.line(
        [
            Cell(clock(float(event["ts"])), "dim"),
            Cell(f"  {event['type']:<16}", "bold"),
            Cell(f"  {subject}"),
            Cell(f"  {details}" if details else "", "dim"),
        ]
    )


def _value(value: Any, names: dict[str, str]) -> str:
    """Empty where there is nothing to show."""
    match value:
        case None:
            return ""
        case float():
            return f"{value:.2f}"
        case list():
            return " ".join(names.get(str(item), str(item)) for item in value)
    return names.get(str(value), str(value))


def moment(text: str, now: float) -> float:
    """Unix seconds of a time that a person wrote: Unix seconds, ISO 8601 (local unless it says), or an age."""
    with contextlib.suppress(ValueError):
        if math.isfinite(seconds := float(text)):
            return seconds
    age = DURATION.fullmatch(text)
    if age is not None and age[2]:
        return now - float(age[1]) * SECONDS[age[2]]
    try:
        read = datetime.fromisoformat(text)
        return (read if read.tzinfo is not None else read.astimezone()).astimezone(UTC).timestamp()
    except (ValueError, OverflowError, OSError):  # also of a year that no clock here has
        raise UsageError(
            f"'{text}' is no time: write Unix seconds, 2026-01-31T12:00, or an age such as 10m or 2d"
        ) from None
