"""`exoctl events`: the bounded event log, and what happens from now on."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from exod.cli.base.options import Commands, Shell, UsageError
from exod.cli.commands.engine_commands import DURATION, SECONDS
from exod.errors import ExitCode

if TYPE_CHECKING:
    from exod.cli.base.client import DaemonClient
    from exod.cli.base.paint import Paint


def register(commands: Commands) -> None:
    parser = commands.add("events", events)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens, until Ctrl-C")
    times = "Unix seconds, a time (2026-01-31T12:00), or an age (10m, 2h)"
    parser.add_argument("--since", metavar="T", help=times)


def events(shell: Shell, follow: bool, since: str | None) -> ExitCode:
    """The event log, oldest first. With --json one event a line."""
    import msgspec

    paint = shell.paint()
    start = None if since is None else moment(since, time.time())
    decoder = msgspec.json.Decoder(dict[str, Any])
    try:
        with shell.daemon() as daemon:
            names = {} if shell.as_json else _names(daemon)
            for event in daemon.stream("events", decoder, since=start, follow=follow):
                if event is not None:
                    line = msgspec.json.encode(event).decode() if shell.as_json else _line(event, names, paint)
                    shell.show([line])
    except KeyboardInterrupt:
        if not follow:
            raise
    return ExitCode.OK


def _names(daemon: DaemonClient) -> dict[str, str]:
    from exod.daemon_api.shapes import StatusReport

    return {node.id: node.name for node in daemon.ask("status", StatusReport).nodes}


def _line(event: dict[str, Any], names: dict[str, str], paint: Paint) -> str:
    from exod.cli.base.paint import Cell
    from exod.cli.screens.links import clock

    subject = names.get(event["subject"], event["subject"])
    shown = {name: _value(value, names) for name, value in event.items() if name not in ("ts", "type", "subject")}
    # A name is told once: as the subject, or beside the path that it is about.
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
    """Empty where there is nothing to say."""
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
    try:
        return float(text)
    except ValueError:
        pass
    age = DURATION.fullmatch(text)
    if age is not None and age[2]:
        return now - float(age[1]) * SECONDS[age[2]]
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"'{text}' is no time: write Unix seconds, 2026-01-31T12:00, or an age such as 10m"
        ) from None
    return (read if read.tzinfo is not None else read.astimezone()).astimezone(UTC).timestamp()
