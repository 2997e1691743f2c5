"""Can a JSON schema be followed? Checked before anything is queued, so that a bad one is refused at once.

A process of its own compiles it (schema_process.py) and is asked here. Decides how long it is waited for, and which
outcomes are remembered. Raises FieldError, which names the part that is wrong.
"""

from __future__ import annotations

import atexit
import hashlib
import select
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import Any, Final

import msgspec

from exod.errors import ExitCode, RequestError
from exod.http.dialects.fields import FieldError
from exod.http.dialects.schema_process import CPU_S, SchemaOutcome, SchemaQuestion
from exoengine.decoding import decode

MAX_SCHEMA_CHARS: Final = 128 * 1024
"""Compiling takes time and memory with the size; the largest schemas in use have some 50,000 characters."""

COMMAND: Final = (sys.executable, "-P", "-m", "exod.http.dialects.schema_process")

WALL_S: Final = 20.0
"""The start of the process and `CPU_S` on a host with ten times as much to do as it can."""

MAX_KNOWN: Final = 256
"""Schemas whose outcome is kept: clients send the same ones with each turn."""

TOO_LONG: Final = f"it takes more than {CPU_S:g} s of computing to compile; make it simpler"
BROKE: Final = "the compiler broke over it; make it simpler"


_outcomes: msgspec.json.Decoder[SchemaOutcome] = msgspec.json.Decoder(SchemaOutcome)


def check_schema(schema: Any, text: str, place: str) -> None:
    """`text` is `schema` as JSON, `place` the field that it came in."""
    if len(text) > MAX_SCHEMA_CHARS:
        raise FieldError(place, f"a schema may have {MAX_SCHEMA_CHARS} characters", "bad_grammar")
    outcome = COMPILER.compile(schema, place)
    if outcome.problem:
        raise FieldError(outcome.place, outcome.problem, "bad_grammar")


class SchemaCompiler:
    """The process that compiles, as long as it lives: it starts with the first schema, and again with the next one
    after it was ended. May be asked from any thread; one schema at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._known: OrderedDict[bytes, SchemaOutcome] = OrderedDict()

    def compile(self, schema: Any, place: str) -> SchemaOutcome:
        """Raises RequestError where there can be no such process, or where it gets no time."""
        question = msgspec.json.encode(SchemaQuestion(schema, place))
        name = hashlib.sha256(question).digest()
        with self._lock:
            outcome = self._known.pop(name, None) or self._ask(question, place)
            self._known[name] = outcome
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return outcome

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ask(self, question: bytes, place: str) -> SchemaOutcome:
        try:
            process = self._started()
            answer = _exchange(process, question)
        except OSError as error:
            self.close()
            text = f"schemas cannot be compiled now: {error.strerror or error}"
            raise RequestError("unavailable", text, ExitCode.DEGRADED) from None
        if answer:
            return decode(_outcomes, answer)
        ended_by = process.poll()
        self.close()
        if ended_by is None:
            text = f"this host is too busy to compile a schema: {WALL_S:g} s were not enough"
            raise RequestError("unavailable", text, ExitCode.DEGRADED)
        if ended_by == -signal.SIGPROF:
            return SchemaOutcome(place, TOO_LONG)
        if ended_by in (-signal.SIGKILL, -signal.SIGTERM):  # by somebody else, or for memory that others hold
            text = "the process that compiles schemas was killed; ask again"
            raise RequestError("unavailable", text, ExitCode.DEGRADED)
        if ended_by < 0:
            return SchemaOutcome(place, BROKE)
        text = f"the process that compiles schemas ended with exit code {ended_by}; exoctl doctor may know why"
        raise RequestError("internal_error", text, ExitCode.INTERNAL)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._process


def _exchange(process: subprocess.Popen[bytes], question: bytes) -> bytes:
    """The line that it answers; empty where it ended, or was too slow. Raises OSError."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(question + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        process.wait()
        return b""
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    if not poll.poll(WALL_S * 1000):
        return b""
    line = process.stdout.readline()
    if not line:
        process.wait()
    return line


COMPILER: Final = SchemaCompiler()
"""One for all requests of this daemon."""

atexit.register(COMPILER.close)
