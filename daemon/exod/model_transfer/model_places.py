"""Where the files of a model lie on this host, whole or not, and which of them may be given to another node.

Two kinds of places: a repository's folder in Hugging Face's cache, and a copy of a folder of another node below
exod's own data folder. Both are laid out as the cache is: `blobs/ETAG`, and `snapshots/COMMIT/NAME` as links to
them. A third kind is a plain folder that a person of this host told to be copied. Beside a repository's blobs lies
`exod-files.json`, the list of what belongs to it, from the moment when it is known.

Decides which file a name stands for, and that nothing outside of a model's own folder ever is. Never writes but for
its list. Raises OSError where a disk fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import msgspec

from exod.model_transfer.file_hashes import FileHashes
from exod.model_transfer.transfer_messages import MAX_FILES, PATTERNS, Files, OfferedFile, is_file_name, problem_of
from exoengine.decoding import DecodingError, from_json

LIST_NAME: Final = "exod-files.json"
INDEX_NAME: Final = "model.safetensors.index.json"
COPIES: Final = "models"
"""Of the data folder: copies of other nodes' folders."""

SMALL_BYTES: Final = 1 << 26
"""A file that a cache names by git's SHA-1 has at most some megabytes; one that claims more is not hashed."""


class FileList(msgspec.Struct, frozen=True):
    """What `exod-files.json` holds."""

    model: str
    commit: str
    files: tuple[OfferedFile, ...]


def repository_folder(cache: Path, model: str) -> Path:
    """As the library names it."""
    return cache / f"models--{model.replace('/', '--')}"


def copy_folder(copies: Path, model: str) -> Path:
    """Of another node's folder by its path there. The path names it and is no way to anywhere."""
    digest = hashlib.sha256(model.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    name = "".join(one if one.isalnum() or one in "._-" else "_" for one in Path(model).name)[:64].lstrip(".")
    return copies / f"{name or 'model'}-{digest}"


def place_of(model: str, cache: Path, copies: Path) -> Path:
    return copy_folder(copies, model) if model.startswith("/") else repository_folder(cache, model)


def write_list(place: Path, listed: FileList) -> None:
    fresh = place / f"{LIST_NAME}.new"
    fresh.write_bytes(msgspec.json.encode(listed))
    os.replace(fresh, place / LIST_NAME)


def read_list(place: Path) -> FileList | None:
    """None where there is none, or none that can be used."""
    try:
        found = from_json((place / LIST_NAME).read_bytes(), FileList)
    except (OSError, DecodingError):
        return None
    return None if problem_of(Files(found.commit, found.files)) else found


def copied(model: str, copies: Path) -> Path | None:
    """The whole copy of another node's folder; None where there is none."""
    place = copy_folder(copies, model)
    listed = read_list(place)
    if listed is None or listed.model != model or not all(_is_here(place, file) for file in listed.files):
        return None
    snapshot = place / "snapshots" / listed.commit
    return snapshot if all((snapshot / file.name).exists() for file in listed.files) else None


def put_together(place: Path, listed: FileList) -> Path:
    """Makes the snapshot of files that are all here, as the library does, and returns its folder."""
    snapshot = place / "snapshots" / listed.commit
    for file in listed.files:
        link = snapshot / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(place / "blobs" / file.etag, link.parent)
        fresh = link.with_name(f"{link.name}.exod-new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        os.replace(fresh, link)
    refs = place / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(listed.commit)
    return snapshot


def _is_here(place: Path, file: OfferedFile) -> bool:
    try:
        found = (place / "blobs" / file.etag).lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == file.size


class Offers:
    """What this node gives to others. `folders` maps the paths that a person here told to be copied."""

    def __init__(
        self, cache: Callable[[], Path], copies: Path, folders: Callable[[], Mapping[str, Path]], hashes: FileHashes
    ):
        self._cache, self._copies, self._folders, self._hashes = cache, copies, folders, hashes

    def files(self, model: str, hashing: Callable[[str], None]) -> Files | None:
        """What belongs to the model and which of it is here; None where nothing is known of it. `hashing(name)` is
        called before each file that has to be read.
        """
        folder = self._folders().get(model)
        if folder is not None:
            return self._plain(folder, hashing)
        place = place_of(model, self._cache(), self._copies)
        listed = read_list(place)
        if listed is None or not all(_is_here(place, file) for file in listed.files):
            snapshot = _snapshot(place)
            whole = Files(snapshot[0], snapshot[1]) if snapshot is not None else None
            if listed is None or whole is not None:
                return self._with_hashes(place, whole, hashing)
        here = tuple(msgspec.structs.replace(file, here=_is_here(place, file)) for file in listed.files)
        return self._with_hashes(place, Files(listed.commit, here), hashing)

    def path(self, model: str, name: str) -> Path | None:
        """The file to send; None where it is not offered, or not whole here."""
        folder = self._folders().get(model)
        if folder is not None:
            return next((path for one, path in _plain_files(folder) if one == name), None)
        place = place_of(model, self._cache(), self._copies)
        listed, snapshot = read_list(place), _snapshot(place)
        known = (*(listed.files if listed else ()), *(snapshot[1] if snapshot else ()))
        found = next((file for file in known if file.name == name and _is_here(place, file)), None)
        return place / "blobs" / found.etag if found is not None else None

    def _with_hashes(self, place: Path, files: Files | None, hashing: Callable[[str], None]) -> Files | None:
        """A receiver checks SHA-256, whatever the hub names a file by."""
        if files is None:
            return None
        known = []
        for file in files.files:
            digest = file.etag if len(file.etag) == 64 else ""
            if file.here and not digest and file.size <= SMALL_BYTES:
                digest = self._hashes.sha256(place / "blobs" / file.etag, lambda: None)
            known.append(msgspec.structs.replace(file, sha256=digest))
        return Files(files.commit, tuple(known))

    def _plain(self, folder: Path, hashing: Callable[[str], None]) -> Files | None:
        files = []
        for name, path in _plain_files(folder):
            digest = self._hashes.sha256(path, lambda name=name: hashing(name))  # type: ignore[misc]
            files.append(OfferedFile(name, path.stat().st_size, digest, digest))
        text = "".join(f"{file.name} {file.size} {file.etag}\n" for file in files)
        return Files(hashlib.sha1(text.encode()).hexdigest(), tuple(files)) if files else None


def _plain_files(folder: Path) -> list[tuple[str, Path]]:
    """Names, and where they really lie: inside the folder, or, where it is a cache's snapshot, beside it."""
    root = folder.resolve()
    allowed = root.parents[1] if root.parent.name == "snapshots" and len(root.parents) > 1 else root
    found = []
    for entry in sorted(root.iterdir())[:MAX_FILES]:
        if is_file_name(entry.name) and any(fnmatch(entry.name, pattern) for pattern in PATTERNS):
            path = entry.resolve()
            if path.is_relative_to(allowed) and path.is_file():
                found.append((entry.name, path))
    return found


def _snapshot(place: Path) -> tuple[str, tuple[OfferedFile, ...]] | None:
    """What another program put here: the revision that it calls main, if all its weights are here."""
    try:
        commit = (place / "refs" / "main").read_text().strip()
        folder = place / "snapshots" / commit
        if not commit.isalnum() or not folder.is_dir():
            return None
        files = tuple(_linked(place, folder))
        index = folder / INDEX_NAME
        wanted = set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else set()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    if problem_of(Files(commit, files)) or not wanted <= {file.name for file in files}:
        return None
    return commit, files


def _linked(place: Path, folder: Path) -> list[OfferedFile]:
    found = []
    for link in sorted(folder.rglob("*"))[:MAX_FILES]:
        name = str(link.relative_to(folder))
        if link.is_symlink() and any(fnmatch(name, pattern) for pattern in PATTERNS):
            blob = link.resolve()
            if blob.parent == (place / "blobs").resolve() and blob.is_file() and is_file_name(name):
                found.append(OfferedFile(name, blob.stat().st_size, blob.name))
    return found
