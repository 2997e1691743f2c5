"""Resolves all dependencies for Macs with wheels only: `make resolve`. uv's resolver, no Mac needed.

python -m tests.platform.mac.resolve [MACOS PYTHON]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

MACOS = ("14.0", "15.0", "26.0")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

DEADLINE_S = 300.0
"""Metadata of some sixty packages over a slow line."""


def resolve(macos: str, python: str) -> subprocess.CompletedProcess[str]:
    """Standard output is the resolution; a non-zero exit code has uv's reason on standard error."""
    argv = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        "--quiet",
        "--no-header",
        "--no-annotate",
    ]
    target = ["--python-platform", "aarch64-apple-darwin", "--python-version", python, "--only-binary", ":all:"]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": macos}
    return subprocess.run(
        [*argv, *target],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )


def main() -> int:
    wanted = [(sys.argv[1], sys.argv[2])] if len(sys.argv) == 3 else [(m, p) for m in MACOS for p in PYTHONS]
    failed = 0
    for macos, python in wanted:
        done = resolve(macos, python)
        packages = len(done.stdout.splitlines())
        print(f"macOS {macos}, Python {python}: {f'{packages} packages' if done.returncode == 0 else done.stderr}")
        failed += done.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
