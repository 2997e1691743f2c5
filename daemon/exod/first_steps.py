"""What a person who started the daemon in a terminal can try next. Text alone."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def announce(api_url: str, control_socket: Path) -> None:
    folder = Path(sys.executable).parent
    lines = (
        "",
        f"  API             {api_url}/v1",
        f"  control socket  {control_socket}",
        "",
        "  try, in another terminal:",
        f"    {folder}/exoctl status",
        f'    {folder}/exoctl chat "count from 3 to 60"',
        "    mosquitto_sub -v -t 'exo/#'",
        "",
        "  Ctrl-C stops it.",
        "",
    )
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full: the daemon runs on
        print("\n".join(lines), flush=True)
