"""How long `exoctl status` takes, imports included, beside an interpreter that does nothing.

Both are run in turns on the same machine, so that what else it does falls on both alike. The daemon behind the
socket is the fake one, in a process of its own: what is measured is the command.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

ROUNDS: Final = 20

TARGET_MS: Final = 200.0
"""The contract's bound for `exoctl status`."""

SERVE: Final = """
import asyncio, sys
from pathlib import Path
from exod.local_api.server import LocalApi
from tests.fake_daemon import FakeDaemon

async def serve():
    shell = LocalApi(FakeDaemon(), Path(sys.argv[1]), debug_enabled=False)
    shell.start()
    await shell.run()

asyncio.run(serve())
"""

Row = tuple[str, float, str]


def run() -> list[Row]:
    """Rows of (name, value, unit): medians and worst of both commands, and what the command itself costs."""
    with tempfile.TemporaryDirectory(prefix="exod-bench-") as folder:
        path = Path(folder) / "exod.sock"
        server = subprocess.Popen([sys.executable, "-c", SERVE, str(path)])
        try:
            _wait_for(path, server)
            status = [sys.executable, "-m", "exod.cli.main", "--socket", str(path), "status"]
            nothing = [sys.executable, "-c", "pass"]
            pairs = [(_wall_ms(status), _wall_ms(nothing)) for _ in range(ROUNDS)]
        finally:
            server.terminate()
            server.wait(timeout=10)
    of_status, of_nothing = zip(*pairs, strict=True)
    return [
        ("exoctl status, median", statistics.median(of_status), "ms"),
        ("exoctl status, worst", max(of_status), "ms"),
        ("python -c pass, median", statistics.median(of_nothing), "ms"),
        ("exoctl status, above python", statistics.median(of_status) - statistics.median(of_nothing), "ms"),
        ("exoctl status, target", TARGET_MS, "ms"),
    ]


def _wall_ms(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


def _wait_for(path: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the fake daemon did not start")
        time.sleep(0.01)


if __name__ == "__main__":
    for name, value, unit in run():
        print(f"{name:32} {value:8.1f} {unit}")
