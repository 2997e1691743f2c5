"""The lab's side of the link emulator: starts it, commands it, ends it.

Never decides what a link does (`link_emulator`) nor which links there are (`topology`, who calls this).
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ANSWERS_WITHIN_S = 20.0  # it answers in about 0.1 ms; this is patience with a busy machine


class EmulatorError(RuntimeError):
    """The emulator refused a command, or is gone."""


class Emulator:
    """A running link emulator. It ends when this process does, however that happens."""

    def __init__(self, lab: str, folder: Path) -> None:
        self.path = folder / "links.sock"
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.link_emulator", lab, str(self.path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,  # its end of file tells the emulator that this process is gone
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C ends the lab in order, from the top
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise EmulatorError("the link emulator did not start; its message stands above")
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.settimeout(ANSWERS_WITHIN_S)
        self._control.connect(str(self.path))
        self._answers = self._control.makefile("rb")

    @property
    def pid(self) -> int:
        return self._process.pid

    def command(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Sends one command and returns its answer, which comes after the command took effect."""
        with self._lock:
            self._control.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
            line = self._answers.readline()
        if not line:
            raise EmulatorError(f"the link emulator is gone (exit code {self._process.poll()})")
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise EmulatorError(answer["error"])
        return answer

    def close(self) -> None:
        try:
            self.command("quit")
            self._process.wait(ANSWERS_WITHIN_S)
        except (OSError, EmulatorError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._control.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
