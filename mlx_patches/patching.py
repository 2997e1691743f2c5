"""Reads an MLX source tree, applies the change of `edits.py` to it, or takes it back.

Decides whether a tree is known, patched, half patched or neither, and refuses what it does not recognise.
Nothing is written before every file has been checked; a write that fails puts back what was written before.
It never downloads, builds or runs anything. `__main__.py` is the only caller.
"""

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mlx_patches.edits import ADDITIONS, EDITS, KNOWN, TRACE, Addition, Edit

VERSION_HEADER = "mlx/version.h"


class TreeRefusedError(Exception):
    """The tree was left as it was; `reasons` holds one written line for each thing in the way."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


class State(Enum):
    UNPATCHED = "not patched"
    PATCHED = "patched"
    HALF = "half patched"


@dataclass(frozen=True, slots=True)
class PatchedFile:
    """One file of the tree as it is, and as it is without and with the change. None: no such file."""

    name: str
    current: bytes | None
    plain: bytes | None
    patched: bytes


@dataclass(frozen=True, slots=True)
class Survey:
    root: Path
    version: str
    files: tuple[PatchedFile, ...]

    @property
    def state(self) -> State:
        if all(file.current == file.patched for file in self.files):
            return State.PATCHED
        if all(file.current == file.plain for file in self.files):
            return State.UNPATCHED
        return State.HALF


def survey(root: Path) -> Survey:
    """Reads every file that the change touches. Raises TreeRefusedError with all reasons, not only the first."""
    version = read_version(root)
    edits = [edit for edit in EDITS if version in edit.versions]
    files: list[PatchedFile] = []
    reasons: list[str] = []
    for name in dict.fromkeys(edit.file for edit in edits):
        try:
            files.append(_edited(root, name, [edit for edit in edits if edit.file == name]))
        except TreeRefusedError as refusal:
            reasons.extend(refusal.reasons)
    for addition in ADDITIONS:
        try:
            files.append(_added(root, addition))
        except TreeRefusedError as refusal:
            reasons.extend(refusal.reasons)
    if reasons:
        raise TreeRefusedError(*reasons)
    return Survey(root, version, tuple(files))


def read_version(root: Path) -> str:
    if not root.is_dir():
        raise TreeRefusedError(f"{root}: there is no such folder")
    header = root / VERSION_HEADER
    if not header.is_file() or not (root / "mlx/CMakeLists.txt").is_file():
        raise TreeRefusedError(
            f"{root}: not an MLX source tree, it has no {VERSION_HEADER} or no mlx/CMakeLists.txt"
        )
    text = _read(header).decode(errors="replace")
    numbers = [
        re.search(rf"^#define MLX_VERSION_{part} (\d+)\s*$", text, re.MULTILINE)
        for part in ("MAJOR", "MINOR", "PATCH")
    ]
    if not all(numbers):
        raise TreeRefusedError(f"{header}: states no version of MLX")
    version = ".".join(number[1] for number in numbers if number)
    if version not in KNOWN:
        raise TreeRefusedError(f"{root}: MLX {version} is not known here, only {', '.join(KNOWN)}")
    return version


def apply(tree: Survey) -> int:
    """Returns how many files were changed: 0 where the tree was patched already."""
    return _write(tree.root, {file.name: file.patched for file in tree.files if file.current != file.patched})


def revert(tree: Survey) -> int:
    """Returns how many files were changed: 0 where the tree was not patched."""
    return _write(tree.root, {file.name: file.plain for file in tree.files if file.current != file.plain})


def _edited(root: Path, name: str, edits: list[Edit]) -> PatchedFile:
    path = root / name
    if not path.is_file():
        raise TreeRefusedError(f"{name}: the file is missing")
    current = _read(path)
    found = {edit.anchor: current.count(edit.anchor.encode()) for edit in edits}
    if wrong := [anchor for anchor, times in found.items() if times != 1]:
        raise TreeRefusedError(
            *(f"{name}: the anchor «{text.strip()}» occurs {found[text]} times, not once" for text in wrong)
        )
    done = [edit for edit in edits if edit.patched in current]
    if done and len(done) < len(edits):
        anchor = next(edit.anchor.strip() for edit in edits if edit not in done)
        raise TreeRefusedError(
            f"{name}: locally modified, the patch at the anchor «{anchor}» was changed or removed"
        )
    plain = patched = current
    for edit in edits:
        anchor_bytes = edit.anchor.encode()
        if done:
            plain = plain.replace(edit.patched, anchor_bytes)
        else:
            patched = patched.replace(anchor_bytes, edit.patched)
    if TRACE in plain:
        raise TreeRefusedError(f"{name}: locally modified, it says {TRACE.decode()} where the patch does not")
    return PatchedFile(name, current, plain, patched)


def _added(root: Path, addition: Addition) -> PatchedFile:
    path = root / addition.file
    current = _read(path) if path.exists() else None
    if current not in (None, addition.content):
        raise TreeRefusedError(f"{addition.file}: locally modified, or from another release of this patch")
    return PatchedFile(addition.file, current, None, addition.content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TreeRefusedError(f"{path}: cannot be read: {error.strerror}") from error


def _write(root: Path, contents: dict[str, bytes | None]) -> int:
    """Writes each file beside its place, then moves all into place; None removes the file."""
    staged: dict[Path, Path | None] = {}
    before: dict[Path, bytes | None] = {}
    try:
        for name, content in contents.items():
            path = (root / name).resolve()
            staged[path] = None if content is None else _stage(path, content)
        for path, ready in staged.items():
            before[path] = path.read_bytes() if path.exists() else None
            if ready is None:
                path.unlink()
            else:
                ready.replace(path)
    except OSError as error:
        _put_back(before)
        raise TreeRefusedError(
            f"{error.filename}: cannot be written: {error.strerror}; nothing was changed"
        ) from error
    finally:
        for ready in staged.values():
            if ready is not None:
                ready.unlink(missing_ok=True)
    return len(contents)


def _stage(path: Path, content: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        shutil.copymode(path, name)
    else:
        os.chmod(name, 0o644)
    return Path(name)


def _put_back(before: dict[Path, bytes | None]) -> None:
    for path, content in before.items():
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content)
