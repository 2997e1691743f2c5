"""macOS's crash reports, and the last words of a process, as text: what crashed, why, and where.

A report is an `.ips` file (a JSON line about it, then its JSON body) or, of older releases, a `.crash` text. Pure,
written from Apple's description of both and never run on a Mac. Decides which line of a report says most, and
whether it was the GPU's watchdog.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

import msgspec

from exod.plain_text import printable
from exoengine.decoding import DecodingError, from_json

CRASH: Final = "309"
"""The `bug_type` of a crash; others are hangs, panics, spins and statistics."""

MAX_FRAMES: Final = 8
MAX_TEXT: Final = 400
"""Characters of the telling line: Swift's and C++'s messages may carry a whole document."""

GPU_WATCHDOG: Final = re.compile(r"kIOGPUCommandBufferCallbackErrorTimeout|Caused GPU Timeout Error")
"""What MLX's uncaught exception carries when a command buffer waited too long."""

_LAST_WORDS: Final = re.compile(
    r"libc\+\+abi: |terminat(ing|e) (due to|called)|Fatal Python error|\w(Error|Exception): "
)
"""One letter before the name is enough: a longer search from each letter of a long word takes seconds."""

_FRACTION: Final = re.compile(r"\.\d+")
_SAYS_NOTHING: Final = frozenset({"abort() called"})


class CrashTextError(ValueError):
    """Not a whole crash report: half written, damaged, or of a shape that is not known. One line."""


class CrashReport(msgspec.Struct, frozen=True):
    """Empty strings, 0 and None stand for what the report does not say."""

    incident: str
    process: str
    pid: int | None
    parent_pid: int | None
    coalition: str
    """The label of the launchd job that it belonged to."""
    images: tuple[str, ...]
    """Paths of what was loaded: the executable first where it is known."""
    at: float
    """Unix seconds."""
    exception: str
    """`EXC_CRASH (SIGABRT)`."""
    text: str
    """What it said last, or why it was ended: one line."""
    frames: tuple[str, ...]
    """Of the thread that crashed, innermost first."""

    @property
    def gpu_watchdog(self) -> bool:
        return GPU_WATCHDOG.search(self.text) is not None


# --- .ips ---------------------------------------------------------------------------------------------------


class _Header(msgspec.Struct, frozen=True):
    bug_type: str | int = ""
    incident_id: str = ""
    timestamp: str = ""


class _Exception(msgspec.Struct, frozen=True):
    type: str = ""
    signal: str = ""


class _Termination(msgspec.Struct, frozen=True):
    namespace: str = ""
    indicator: str = ""
    details: list[str] = []
    reasons: list[str] = []


class _Frame(msgspec.Struct, frozen=True, rename="camel"):
    image_index: int = -1
    symbol: str = ""


class _Thread(msgspec.Struct, frozen=True):
    frames: list[_Frame] = []


class _Image(msgspec.Struct, frozen=True):
    name: str = ""
    path: str = ""


class _CrashBody(msgspec.Struct, frozen=True, rename="camel"):
    pid: int | None = None
    parent_pid: int | None = None
    proc_name: str = ""
    proc_path: str = ""
    coalition_name: str = ""
    capture_time: str = ""
    exception: _Exception = _Exception()
    termination: _Termination = _Termination()
    faulting_thread: int | None = None
    threads: list[_Thread] = []
    used_images: list[_Image] = []
    asi: dict[str, list[str]] = {}
    """Application-specific information: what libraries said when they gave up."""


def parse_ips(text: str) -> CrashReport | None:
    """None where it reports something else than a crash. Raises CrashTextError."""
    first, _, rest = text.partition("\n")
    try:
        header = from_json(first.encode(), _Header)
        if str(header.bug_type) != CRASH:
            return None
        body = from_json(rest.encode(), _CrashBody)
    except DecodingError as error:
        raise CrashTextError(f"not a whole .ips report: {error}") from None
    said = [line for lines in body.asi.values() for line in lines]
    end = body.termination
    said += [*end.details, *end.reasons, end.indicator]
    return CrashReport(
        incident=header.incident_id,
        process=body.proc_name,
        pid=body.pid,
        parent_pid=body.parent_pid,
        coalition=body.coalition_name,
        images=(body.proc_path, *(image.path for image in body.used_images if image.path)),
        at=_unix(body.capture_time) or _unix(header.timestamp),
        exception=_exception(body.exception.type, body.exception.signal),
        text=_most_telling(said),
        frames=_frames(body),
    )


def _frames(body: _CrashBody) -> tuple[str, ...]:
    at = body.faulting_thread
    if at is None or not 0 <= at < len(body.threads):
        return ()
    images = body.used_images
    return tuple(
        " ".join(part for part in (images[frame.image_index].name if known else "", frame.symbol) if part)
        for frame in body.threads[at].frames[:MAX_FRAMES]
        for known in (0 <= frame.image_index < len(images),)
    )


# --- .crash -------------------------------------------------------------------------------------------------

_FIELD: Final = re.compile(r"^([A-Z][\w /-]*?):[ \t]+(.*)$", re.MULTILINE)
_NAMED: Final = re.compile(r"(.*?) ?\[(\d{1,10})\]$")
_FRAME: Final = re.compile(r"^\d+\s+(\S+)\s+0x[0-9a-f]+\s+(.*?)(?: \+ \d+)?$")


def parse_crash(text: str) -> CrashReport:
    """Raises CrashTextError."""
    fields = dict(reversed(_FIELD.findall(text)))  # the first of a name counts
    process = _NAMED.match(fields.get("Process", ""))
    if process is None or "Exception Type" not in fields:
        raise CrashTextError("not a whole .crash report: it names no process or no exception")
    parent = _NAMED.match(fields.get("Parent Process", ""))
    said = [*_block(text, "Application Specific Information"), fields.get("Termination Reason", "")]
    frames = [_FRAME.match(line) for line in _block(text, r"Thread \d+ Crashed")]
    kind, _, signal = fields["Exception Type"].partition(" ")
    return CrashReport(
        incident=fields.get("Incident Identifier", ""),
        process=process[1],
        pid=int(process[2]),
        parent_pid=int(parent[2]) if parent is not None else None,
        coalition=fields.get("Coalition", "").partition(" ")[0],
        images=(fields.get("Path", ""),),
        at=_unix(fields.get("Date/Time", "")),
        exception=_exception(kind, signal.strip("()")),
        text=_most_telling(said),
        frames=tuple(f"{frame[1]} {frame[2]}" for frame in frames[:MAX_FRAMES] if frame is not None),
    )


def _block(text: str, title: str) -> list[str]:
    """The lines below a title, to the next empty one."""
    found = re.search(rf"^{title}[^\n:]*:[^\n]*\n((?:[^\n]+\n?)*)", text, re.MULTILINE)
    return found[1].splitlines() if found is not None else []


# --- both, and last words -----------------------------------------------------------------------------------


def last_words(log: str) -> str:
    """What a process wrote that says why it ended: the GPU's watchdog first, then an uncaught exception, then its
    last line.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return uncaught(log) or (printable(lines[-1], MAX_TEXT) if lines else "")


def uncaught(log: str) -> str:
    """The line of the GPU's watchdog or of an uncaught exception; empty where there is none."""
    lines = [line.strip() for line in log.splitlines()]
    for pattern in (GPU_WATCHDOG, _LAST_WORDS):
        if found := [line for line in lines if pattern.search(line)]:
            return printable(found[-1], MAX_TEXT)
    return ""


def _most_telling(said: list[str]) -> str:
    lines = [printable(" ".join(line.split()), MAX_TEXT) for line in said]
    lines = [line for line in lines if line and line not in _SAYS_NOTHING]
    return next((line for line in lines if GPU_WATCHDOG.search(line)), lines[0] if lines else "")


def _exception(kind: str, signal: str) -> str:
    return f"{kind} ({signal})" if kind and signal else kind or signal


def _unix(text: str) -> float:
    """`2026-03-13 07:28:38.1234 -0700`, to the second; 0 where it is no time."""
    try:
        return datetime.strptime(_FRACTION.sub("", text.strip()), "%Y-%m-%d %H:%M:%S %z").timestamp()
    except ValueError:
        return 0.0
