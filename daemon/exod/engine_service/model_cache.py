"""The models on this host that came from elsewhere: which there are, whether they are whole, and removing one.

Reads Hugging Face's cache folder, whose layout is `models--OWNER--NAME/{blobs,refs,snapshots}`, and the folder
where copies of other nodes' folders lie in the same way (`copies`); a copy's name is its path on that node.
Removes one as a whole, never one that is being downloaded. Sizes in bytes. Raises ModelFolderError, one line each.
"""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Final

import msgspec

from exod.core.base.cluster_wish import is_repository
from exod.engine_service.download_files import PART_SUFFIX
from exod.model_transfer.model_places import place_of, read_list
from exoengine.model_files.model_folder import ModelFolderError, ModelSummary, find_local, inspect

PREFIX: Final = "models--"
MAX_MODELS: Final = 4096
"""Folders that are looked at: more than any disk holds."""


class CachedModel(msgspec.Struct, frozen=True):
    """One repository in the cache. `folder` is None where no revision is whole; `text` then says why."""

    name: str
    folder: Path | None
    size_bytes: int
    partial_bytes: int
    """Of it, what lies there of files that are not finished."""
    text: str = ""


def cached_models(copies: Path) -> list[CachedModel]:
    """All of them, by name. A folder that cannot be read is listed, not passed over."""
    copied = sorted(one for one in copies.glob("*") if one.is_dir()) if copies.is_dir() else []
    return [*_repositories(), *(_look(folder, listed.model) for folder in copied if (listed := read_list(folder)))]


def _repositories() -> list[CachedModel]:
    cache = _cache_folder()
    try:
        folders = sorted(one for one in cache.iterdir() if one.name.startswith(PREFIX) and one.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ModelFolderError("unreadable", f"{cache} cannot be read: {error.strerror}") from None
    names = ((folder, folder.name.removeprefix(PREFIX).replace("--", "/", 1)) for folder in folders[:MAX_MODELS])
    return [_look(folder, name) for folder, name in names]


def cached_model(name: str, copies: Path) -> CachedModel:
    """One by its repository id, or a copy by its path. Raises ModelFolderError where there is none."""
    found = next((one for one in cached_models(copies) if one.name == name), None)
    if found is None:
        cure = f"; to download it: exoctl model pull {name}" if is_repository(name) else ""
        raise ModelFolderError("no_such_model", f"{name} is not on this host (see exoctl model ls){cure}")
    return found


def any_model(name: str, copies: Path) -> CachedModel:
    """As `cached_model`; also the embedded model, or a folder of this host."""
    is_cached = any(one.name == name for one in cached_models(copies))
    if not is_cached and not is_repository(name) and (folder := find_local(name)) is not None:
        return CachedModel(name, folder, sum(one.stat().st_size for one in folder.glob("*") if one.is_file()), 0)
    return cached_model(name, copies)


def summary_of(model: CachedModel) -> ModelSummary:
    """What is known of it before it is loaded. Raises ModelFolderError where it is not whole."""
    if model.folder is None:
        text = f"{model.name} is not whole here ({model.text}); to go on with it: exoctl model pull {model.name}"
        raise ModelFolderError("incomplete", text)
    return inspect(model.folder)


def remove(name: str, copies: Path) -> int:
    """Removes a model with all that lies there of it, and returns the bytes that are free then."""
    model = cached_model(name, copies)
    folder = place_of(name, _cache_folder(), copies)
    if folder.is_symlink():
        raise ModelFolderError("unwritable", f"{folder} is a link to {folder.readlink()}: remove both by hand")
    lock = folder / "exod-download.lock"
    try:
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = f"{name} is being fetched; first: exoctl model pause {name}, or exoctl engine unload"
                raise ModelFolderError("busy", text) from None
            shutil.rmtree(folder)
    except OSError as error:
        raise ModelFolderError(
            "unwritable", f"{error.filename or folder} cannot be removed: {error.strerror}"
        ) from None
    return model.size_bytes


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _look(folder: Path, name: str) -> CachedModel:
    sizes = {one.name: one.lstat().st_size for one in (folder / "blobs").glob("*") if one.is_file()}
    # On a disk without links the files themselves lie where links would.
    here = [one for one in (folder / "snapshots").rglob("*") if one.is_file() and not one.is_symlink()]
    whole_bytes = sum(sizes.values()) + sum(one.lstat().st_size for one in here)
    partial = sum(size for blob, size in sizes.items() if blob.endswith((PART_SUFFIX, ".incomplete")))
    whole, text = None, "no revision of it is here"
    for snapshot in _snapshots(folder):
        try:
            inspect(snapshot)
        except (ModelFolderError, OSError) as error:
            text = str(error)
        else:
            whole, text = snapshot, ""
            break
    return CachedModel(name, whole, whole_bytes, partial, text)


def _snapshots(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted((folder / "snapshots").glob("*"), key=lambda one: one.lstat().st_mtime, reverse=True)
