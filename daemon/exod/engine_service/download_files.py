"""Fetches the files of one repository into huggingface_hub's cache, byte by byte where an earlier try left off.

huggingface_hub lists the repository, signs requests and lays out its cache; the bytes are fetched here, because
the library forgets a file that was not finished. A file is fetched to `blobs/NAME.exod-part`, checked against the
hub's checksum, and renamed to what the library would call it. Sizes are bytes, times seconds. Errors are
DownloadError with one line for people. Runs in the process of a download, never in the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from exod import VERSION
from exoengine.model_files.memory_fit import gib

PATTERNS: Final = (
    "*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "tiktoken.model", "*.txt", "*.jsonl",
    "*.jinja",
)  # fmt: skip
"""What a rank reads of a repository; many hold the same weights a second time in another format."""

PART_SUFFIX: Final = ".exod-part"
"""Of a file that is not finished."""

PARALLEL: Final = 4
"""Files at once. One connection rarely fills a line; more than a few are slowed by the hub."""

ANSWER_S: Final = 20.0
"""Between two pieces of an answer. A hub behind a busy proxy may take ten seconds to begin one."""

MAX_BARREN_TRIES: Final = 3
"""Tries in a row that brought no byte. The rank asks again after a minute in any case."""

PAUSES_S: Final = (1.0, 2.0, 4.0)

SPARE_BYTES: Final = 1 << 30
"""A disk is never filled to the last byte: the system and our own logs need to go on."""

RANGE_REFUSED: Final = 416
"""The hub has no byte there: the file is shorter than it announced."""
PASSING: Final = (408, RANGE_REFUSED, 429)
"""Refusals that may be none a second later: too slow, no such range, too many requests."""

LOCK_EVERY_S: Final = 1.0
CHECKED_AT_ONCE: Final = 1 << 24


class DownloadError(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class RemoteFile(msgspec.Struct, frozen=True):
    name: str
    size: int
    etag: str
    """What the cache names the file by: SHA-256 of its content, or git's SHA-1 for a small one."""


class Repository(msgspec.Struct, frozen=True):
    model: str
    commit: str
    files: tuple[RemoteFile, ...]
    folder: Path
    """In the library's cache."""

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def blob(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / file.etag

    def part(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / f"{file.etag}{PART_SUFFIX}"

    def done_bytes(self) -> int:
        return sum(min(file.size, _size(self.blob(file)) or _size(self.part(file))) for file in self.files)


def hub() -> str:
    """The host that models come from, for texts."""
    from huggingface_hub import constants

    return urlsplit(str(constants.ENDPOINT)).netloc or str(constants.ENDPOINT)


def listed(model: str) -> Repository:
    """The files of the repository's main branch that a rank needs. Raises what huggingface_hub raises."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    info = HfApi(library_name="exod", library_version=VERSION).model_info(
        model, files_metadata=True, timeout=ANSWER_S
    )
    files = [_remote_file(model, one) for one in info.siblings or ()]
    wanted = tuple(file for file in files if any(fnmatch(file.name, pattern) for pattern in PATTERNS))
    if not any(file.name.endswith(".safetensors") for file in wanted):
        raise DownloadError("no_weights", f"{model} on {hub()} has no weights: no file model*.safetensors")
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")
    return Repository(model, str(info.sha), wanted, folder)


def _remote_file(model: str, sibling: Any) -> RemoteFile:
    etag = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
    named_well = isinstance(etag, str) and etag.isalnum()  # it becomes a file's name
    if not named_well or not isinstance(sibling.size, int) or sibling.size < 0:
        raise DownloadError("hub_answer", f"{hub()} does not say what {sibling.rfilename} of {model} holds")
    return RemoteFile(sibling.rfilename, sibling.size, etag)


def fetch_all(repository: Repository, worked: Callable[[int], None]) -> None:
    """Returns when every file is there. `worked(bytes)` is called for what was received or checked."""
    (repository.folder / "blobs").mkdir(parents=True, exist_ok=True)
    with _alone(repository.folder):
        missing = [file for file in repository.files if not repository.blob(file).exists()]
        _check_space(repository)
        missing.sort(key=lambda file: -file.size)
        pool = ThreadPoolExecutor(PARALLEL)
        try:
            for done in [pool.submit(_fetch, repository, file, worked) for file in missing]:
                done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two nodes of one host share the cache: the second waits, and finds what the first one fetched."""
    with (folder / "exod-download.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOCK_EVERY_S)
        yield


def _check_space(repository: Repository) -> None:
    missing = repository.total_bytes - repository.done_bytes()
    free = shutil.disk_usage(repository.folder).free
    if missing and missing + SPARE_BYTES > free:
        text = (
            f"{repository.model} needs {gib(missing)} more in {repository.folder.parent}, where {gib(free)} are "
            f"free: free {gib(missing + SPARE_BYTES - free)}, or set HF_HOME to a folder on another disk"
        )
        raise DownloadError("disk_full", text)


def _fetch(repository: Repository, file: RemoteFile, worked: Callable[[int], None]) -> None:
    """Tries until nothing comes any more. A part that cannot be right is thrown away."""
    part, barren = repository.part(file), 0
    while True:
        before, trouble = _size(part), None
        try:
            if before < file.size or not part.exists():
                _receive(repository, file, part, worked)
        except Exception as error:
            if not _is_passing(error):
                raise
            trouble = None if _status_of(error) == RANGE_REFUSED else error
        have = _size(part)
        if have == file.size and _is_whole(part, file, worked):
            part.replace(repository.blob(file))
            return
        if have >= file.size:
            part.unlink()
        barren = 0 if before < have < file.size else barren + 1
        if barren >= MAX_BARREN_TRIES:
            raise trouble or _wrong(repository, file, have)
        time.sleep(PAUSES_S[min(barren, len(PAUSES_S) - 1)])


def _wrong(repository: Repository, file: RemoteFile, have: int) -> DownloadError:
    what = f"what {hub()} sends of {repository.model}/{file.name}"
    if have == file.size:
        return DownloadError("damaged", f"{what} has another checksum than announced; it is fetched anew")
    text = f"{what} does not have the size that it announced ({have} bytes instead of {file.size})"
    return DownloadError("damaged", f"{text}: a proxy on the way may change it; it is tried again every minute")


def _receive(repository: Repository, file: RemoteFile, part: Path, worked: Callable[[int], None]) -> None:
    """Appends to `part` what the hub sends from there on; at most a piece more than was announced."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repository.model, file.name, revision=repository.commit)
    headers = build_hf_headers(library_name="exod", library_version=VERSION)
    headers["Accept-Encoding"] = "identity"  # a range counts the bytes as they are sent
    have = _size(part)
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=ANSWER_S, follow_redirects=True) as response:
        if response.status_code >= 400:
            response.read()
            hf_raise_for_status(response)
        goes_on = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        with part.open("ab" if goes_on else "wb") as out:
            for piece in response.iter_raw():
                out.write(piece)
                worked(len(piece))
                if out.tell() > file.size:
                    return


def _is_whole(part: Path, file: RemoteFile, worked: Callable[[int], None]) -> bool:
    digest = hashlib.sha256() if len(file.etag) == 64 else hashlib.sha1(b"blob %d\0" % file.size)
    with part.open("rb") as stream:
        while piece := stream.read(CHECKED_AT_ONCE):
            digest.update(piece)
            worked(len(piece))
    return digest.hexdigest() == file.etag


def _is_passing(error: Exception) -> bool:
    """May the same request succeed a second later? A connection that broke, a hub that is busy, a range refused."""
    status = _status_of(error)
    return status in PASSING or status >= 500 if status else is_network(error)


def _status_of(error: Exception) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def is_network(error: BaseException) -> bool:
    """Is it an error of the HTTP client itself? Its module has had two names, and OSError is no base of it."""
    return type(error).__module__.partition(".")[0].startswith("httpx")


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
