"""Cross-compiles the launcher of exod.app to an arm64 Mach-O, on any system, with the package `ziglang`.

    python -m launchd.app.build [FILE]

The same source gives the same bytes: the compiler's version is pinned, no debugging data or path goes in, and the
linker takes the LC_UUID from the contents. A test builds it again and compares. Not used at run time.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from launchd.app import EXECUTABLE, OLDEST_MACOS, source

FLAGS = ("-Os", "-g0", "-std=c11", "-D_DARWIN_C_SOURCE", "-Wall", "-Wextra", "-Werror")

DEADLINE_S = 300.0
"""Seconds on an idle machine; the first build compiles zig's own parts."""


def build(target: Path) -> None:
    """Raises CalledProcessError with the compiler's complaint on standard error."""
    with tempfile.TemporaryDirectory() as folder:
        # The linker signs with the output's name as identifier: always the same name.
        made = Path(folder) / EXECUTABLE
        compiler = (sys.executable, "-P", "-m", "ziglang", "cc", "-target", f"aarch64-macos.{OLDEST_MACOS}.0")
        cache = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        subprocess.run(
            (*compiler, *FLAGS, "-o", str(made), str(source())),
            check=True,
            timeout=DEADLINE_S,
            env={**os.environ, **cache},
        )
        target.write_bytes(made.read_bytes())
    target.chmod(0o755)


def main() -> int:
    if importlib.util.find_spec("ziglang") is None:
        print("the package ziglang is not installed: make setup-cross", file=sys.stderr)
        return 2
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else source().with_name("exod-arm64")
    build(target)
    print(f"built {target}, {target.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
