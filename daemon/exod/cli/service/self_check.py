"""What a service that was just started on a Mac found out about the local network: read from its event log.

macOS's exemption of services of the system is not certain, and only the daemon itself can find out. It writes the
event `local_network.checked` once after each start. Waits for that, and tells; changes nothing. Never raises: a log
that cannot be read has no event.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

from exod.cli.service.host import Host
from exod.model import Event
from exoengine.decoding import DecodingError, from_json

WITHIN_S: Final = 60.0
"""A refusal counts after 30 s and is looked for each 10 s; the daemon itself starts within a few."""

POLL_S: Final = 0.5

MAX_BYTES: Final = 1 << 20
"""Of one look at the log. A start writes some dozen lines."""

ALLOWED: Final = " It has looked: macOS lets it use the local network."
DENIED: Final = " It has looked, and is not allowed: {}. The cures: exoctl doctor"
NOT_KNOWN: Final = (
    f" Within {WITHIN_S:g} s it has not found out whether macOS lets it use the local network, which is not "
    "certain for a service of the system: exoctl doctor says so later."
)


class SelfCheck:
    """Made before the service starts: what stands in the log then is an older life's."""

    def __init__(self, host: Host, config: Path | None) -> None:
        self._sleep = host.sleep
        self._log = _data_folder(host, config) / "events.ndjson"
        self._mark = self._size()

    def told(self) -> str:
        """Waits for the event. One sentence or two for a person."""
        waited_s = 0.0
        while (event := self._found()) is None:
            if waited_s >= WITHIN_S:
                return NOT_KNOWN
            self._sleep(POLL_S)
            waited_s += POLL_S
        return ALLOWED if event.data.get("allowed") is True else DENIED.format(event.data.get("text", ""))

    def _size(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    def _found(self) -> Event | None:
        try:
            with self._log.open("rb") as stream:
                # A log that was moved aside meanwhile begins anew.
                stream.seek(self._mark if self._size() >= self._mark else 0)
                lines = stream.read(MAX_BYTES).splitlines()
        except OSError:
            return None
        for line in lines:
            if b'"local_network.checked"' in line:
                try:
                    return from_json(line, Event)
                except DecodingError:  # not written to its end yet
                    continue
        return None


def _data_folder(host: Host, config: Path | None) -> Path:
    """Of that user's daemon; this process is root, and its own folders are others."""
    folder = host.home / "Library" / "Application Support" / "exod"
    try:
        table = tomllib.loads((config or folder / "exod.toml").read_text(encoding="utf-8"))
        named = table["node"]["data_dir"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder
    if not isinstance(named, str):
        return folder
    return host.home / named[2:] if named.startswith("~/") else Path(named)
