"""`python -P -m exoengine.native.leash COMMAND…`: runs a command that ends when the process that started this ends.

A compiler that goes on after its worker was killed would be left behind on the machine. The starter holds the
other end of standard input: when that closes, whatever the reason, everything of this process group is killed. It
must be started as the leader of a session of its own. Ends with the command's exit code, or with 128 and the
number of the signal that ended it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

KILLED = 128
"""And the number of the signal, as shells have it."""

NOT_FOUND = 127
"""As shells have it for a command that is not there."""


def main() -> int:
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    try:
        code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, check=False).returncode
        return code if code >= 0 else KILLED - code
    except OSError as error:
        print(f"error: {sys.argv[1]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND


def _end_with_the_starter() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
