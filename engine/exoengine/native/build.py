"""The native group's module: found, built, tested, and remembered with its verdict.

A module is used only where its verdict says that this very file worked with this very MLX. Verdicts and builds lie
in `cache/KEY/`, KEY being the recipe's; a wheel or a checkout may carry a module in `prebuilt/KEY/`. Builds happen
one at a time, under a lock, in a child with a deadline; the self-test is another child. Nothing here raises for
what is missing or broken: the `Status` says it, with the command that mends it.

Imports no MLX, so that the daemon may ask.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from exoengine.decoding import DecodingError, from_json
from exoengine.native.leash import KILLED
from exoengine.native.recipe import FOLDER, NotBuildableError, Recipe, find_compiler, recipe

BUILD_DEADLINE_S: Final = 300.0
"""It takes 11 s on two cores of 2026; a busy small machine may need many times that."""

TEST_DEADLINE_S: Final = 60.0
"""The self-test takes a second, most of it the import of MLX."""

PREBUILT: Final = FOLDER / "prebuilt"
VERDICT: Final = "verdict.json"
PROOF: Final = 2
"""What a verdict must have proven: rises with the self-test. 2: with the device that MLX computes on."""
BUILD_COMMAND: Final = "exoctl engine native build"


class Status(msgspec.Struct, frozen=True):
    """`file` is set where the module can be used; else `reason` says why not and `cure` what mends it."""

    file: str = ""
    reason: str = ""
    cure: str = ""
    is_untried: bool = False
    """Was it never built for this MLX, Python and exod? A build may then give it without anybody's help."""

    @property
    def is_ready(self) -> bool:
        return bool(self.file)


class SelfTestResult(msgspec.Struct, frozen=True):
    """What the self-test said of one file with one MLX; a failed build has a verdict without a file."""

    sha256: str
    mlx: tuple[int, int]
    """Size and time of change, in ns, of MLX's library: an MLX that was built anew is tested anew."""
    reason: str = ""
    cure: str = ""
    proof: int = 0


def cache_in(data_dir: Path) -> Path:
    """The cache of a node with this data folder."""
    return data_dir / "native"


def lines(found: Status) -> list[str]:
    """For a terminal."""
    if found.is_ready:
        return [f"native group: ready ({found.file})"]
    return [f"native group: not ready, {found.reason}; every step is safe", f"to mend it: {found.cure}"]


def status(cache: Path) -> Status:
    """What there is now; builds and tests nothing."""
    try:
        return _status(recipe(), cache)
    except NotBuildableError as error:
        return Status(reason=str(error), cure=error.cure)


def _status(now: Recipe, cache: Path) -> Status:
    """Raises NotBuildableError where there is nothing, and no compiler."""
    bad = Status()
    for file in _candidates(now, cache):
        verdict = _verdict_of(now, file, cache)
        if verdict is not None and not verdict.reason:
            return Status(file=str(file.absolute()))
        if verdict is None:
            reason, cure = f"{file} is damaged or was never tested with this MLX", BUILD_COMMAND
        else:
            reason, cure = verdict.reason, verdict.cure
        bad = bad if bad.reason else Status(reason=reason, cure=cure, is_untried=verdict is None)
    if bad.reason:
        return bad
    verdict = _read(cache / now.key / VERDICT)
    if verdict is not None and verdict.reason:
        return Status(reason=verdict.reason, cure=verdict.cure)
    find_compiler()  # without one the command would not help
    with contextlib.suppress(OSError):
        if any(cache.glob(f"*/{VERDICT}")):
            reason = "it was built for another MLX, Python or exod"
            return Status(reason=reason, cure=BUILD_COMMAND, is_untried=True)
    return Status(reason="it has not been built yet", cure=BUILD_COMMAND, is_untried=True)


def build(cache: Path, again: bool = False) -> Status:
    """Makes it ready where that can be: tests what is there, builds what is not, or all of it `again`."""
    try:
        now = recipe()
        if not again and (ready := _status(now, cache)).is_ready:
            return ready
        with _lock(cache):
            if not again and (ready := _status(now, cache)).is_ready:
                return ready  # another process was faster
            return _make_ready(now, cache, again)
    except NotBuildableError as error:
        return Status(reason=str(error), cure=error.cure)
    except OSError as error:
        where = error.filename or cache
        text = f"{where} cannot be written: {error.strerror or error}"
        return Status(reason=text, cure=f"make {cache.parent} writable, or give node.data_dir another folder")


def _make_ready(now: Recipe, cache: Path, again: bool) -> Status:
    folder = cache / now.key
    folder.mkdir(parents=True, exist_ok=True)
    for file in () if again else _candidates(now, cache):
        failed = _tested(now, file, folder)
        if not failed.reason:
            return Status(file=str(file.absolute()))
    compiler = find_compiler()
    _check_internals(now)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / now.file_name
        said = _run(now.command(compiler, made), BUILD_DEADLINE_S)
        if said is not None:
            reason = f"{compiler[-1]} could not build it: {said}"
            failed = SelfTestResult("", _stamp(now), reason, f"mend the compiler, then: {BUILD_COMMAND}")
            _write(folder / VERDICT, failed)
            return Status(reason=failed.reason, cure=failed.cure)
        file = folder / now.file_name
        os.replace(made, file)
    verdict = _tested(now, file, folder)
    if verdict.reason:
        return Status(reason=verdict.reason, cure=verdict.cure)
    return Status(file=str(file.absolute()))


def _tested(now: Recipe, file: Path, folder: Path) -> SelfTestResult:
    said = _run([sys.executable, "-P", "-m", "exoengine.native.self_test", str(file)], TEST_DEADLINE_S)
    reason = "" if said is None else f"its self-test failed: {said}"
    if said is not None and "crashed" in said:
        reason += f"; {file} may be damaged"
    verdict = SelfTestResult(_sha256(file), _stamp(now), reason, BUILD_COMMAND if reason else "", PROOF)
    _write(folder / VERDICT, verdict)
    return verdict


def _check_internals(now: Recipe) -> None:
    """A nanobind of another kind would build a module that does not know MLX's types."""
    child = subprocess.run(
        [sys.executable, "-P", "-m", "exoengine.native.self_test", "--internals"],
        capture_output=True, text=True, timeout=TEST_DEADLINE_S, check=False,
    )  # fmt: skip
    wanted = int(child.stdout) if child.stdout.strip().isdecimal() else 0
    if wanted and wanted != now.internals:
        raise NotBuildableError(
            f"nanobind {now.nanobind_version} does not match this MLX "
            f"(internals {now.internals}, MLX has {wanted})",
            "make setup",
        )


def _candidates(now: Recipe, cache: Path) -> list[Path]:
    return [file for folder in (PREBUILT, cache) if (file := folder / now.key / now.file_name).is_file()]


def _verdict_of(now: Recipe, file: Path, cache: Path) -> SelfTestResult | None:
    """That of this very file with this very MLX."""
    found = [_read(path) for path in (file.with_name(VERDICT), cache / now.key / VERDICT)]
    sha256 = _sha256(file)
    proven = (sha256, _stamp(now), PROOF)
    fitting = (one for one in found if one is not None and (one.sha256, one.mlx, one.proof) == proven)
    return next(fitting, None)


def _stamp(now: Recipe) -> tuple[int, int]:
    try:
        stat = now.library().stat()
    except OSError:
        return (0, 0)
    return (stat.st_size, stat.st_mtime_ns)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(path: Path) -> SelfTestResult | None:
    try:
        return from_json(path.read_bytes(), SelfTestResult)
    except (OSError, DecodingError):
        return None


def _write(path: Path, verdict: SelfTestResult) -> None:
    new = path.with_suffix(f".{os.getpid()}")
    new.write_bytes(msgspec.json.encode(verdict))
    os.replace(new, path)


@contextlib.contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """One build at a time in a cache. Raises OSError where it cannot be written."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], deadline_s: float) -> str | None:
    """None where it went well; else what the child said, in one line. It and its children are gone afterwards, also
    where this process is killed meanwhile (leash.py).
    """
    begun = time.monotonic()
    theirs, ours = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "exoengine.native.leash", *command], stdin=theirs,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            _, said = child.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return f"it did not end within {time.monotonic() - begun:.0f} s"
    finally:
        os.close(theirs)
        os.close(ours)
    if child.returncode == 0:
        return None
    if child.returncode > KILLED:
        return f"it crashed ({signal.Signals(child.returncode - KILLED).name})"
    lines = [line for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines[-1:]
    return telling[0].strip() if telling else f"it ended with {child.returncode}"
