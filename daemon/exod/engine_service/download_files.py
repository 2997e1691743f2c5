"""Fetches the files of one model into a cache, from other nodes and from its hub, going on where a try left off.

huggingface_hub lists the repository and signs requests; the bytes are fetched here, because the library forgets a
file that was not finished and knows no other nodes. A file is fetched to `blobs/NAME.exod-part`, checked against
the checksum that was announced, and renamed to what the library would call it. Sizes are bytes, times seconds.
Errors are DownloadError with one line for people. Runs in the process of a download, never in the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from exod import VERSION
from exod.core.models.source_choice import HUB, choose_source
from exod.engine_service.file_check import FollowingDigest, is_whole
from exod.model_transfer.model_places import FileList, repository_folder
from exod.model_transfer.peer_files import FileSources, RefusedError
from exod.model_transfer.transfer_messages import PATTERNS, Files, OfferedFile
from exoengine.framing import FrameError
from exoengine.model_files.memory_fit import gib

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

FIRST_ANSWER_S: Final = 2.0
"""For the other nodes to say what they have, before a hub is asked: all nodes are to keep one revision. A node that
is there answers in milliseconds."""

MAX_NAMED: Final = 4
"""Files in a line for people."""

LOCK_EVERY_S: Final = 1.0

LOOK_AGAIN_S: Final = 0.2
"""For a file that neither a node has, nor may be asked of the hub just now: another node fetches it."""


class DownloadError(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Repository(msgspec.Struct, frozen=True):
    model: str
    commit: str
    files: tuple[OfferedFile, ...]
    folder: Path
    """Of the model, in the library's cache or among the copies."""

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def blob(self, file: OfferedFile) -> Path:
        return self.folder / "blobs" / file.etag

    def part(self, file: OfferedFile) -> Path:
        return self.folder / "blobs" / f"{file.etag}{PART_SUFFIX}"

    @property
    def file_list(self) -> FileList:
        return FileList(self.model, self.commit, self.files)

    def done_bytes(self) -> int:
        return sum(min(file.size, _size(self.blob(file)) or _size(self.part(file))) for file in self.files)


def hub() -> str:
    """The host that models come from, for texts."""
    from huggingface_hub import constants

    return urlsplit(str(constants.ENDPOINT)).netloc or str(constants.ENDPOINT)


def listed(model: str) -> Repository:
    """The files of the repository's main branch that a rank needs. Raises what huggingface_hub raises."""
    from huggingface_hub import HfApi, constants

    info = HfApi(library_name="exod", library_version=VERSION).model_info(
        model, files_metadata=True, timeout=ANSWER_S
    )
    files = [_remote_file(model, one) for one in info.siblings or ()]
    wanted = tuple(file for file in files if any(fnmatch(file.name, pattern) for pattern in PATTERNS))
    if not any(file.name.endswith(".safetensors") for file in wanted):
        raise DownloadError("no_weights", f"{model} on {hub()} has no weights: no file model*.safetensors")
    return Repository(model, str(info.sha), wanted, repository_folder(Path(constants.HF_HUB_CACHE), model))


def offered(model: str, files: Files, folder: Path) -> Repository:
    """What another node says that belongs to the model."""
    wanted = tuple(file for file in files.files if any(fnmatch(file.name, pattern) for pattern in PATTERNS))
    return Repository(model, files.commit, wanted, folder)


def _remote_file(model: str, sibling: Any) -> OfferedFile:
    etag = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
    named_well = isinstance(etag, str) and etag.isalnum()  # it becomes a file's name
    if not named_well or not isinstance(sibling.size, int) or sibling.size < 0:
        raise DownloadError("hub_answer", f"{hub()} does not say what {sibling.rfilename} of {model} holds")
    return OfferedFile(sibling.rfilename, sibling.size, etag)


class Sources:
    """Where files may be fetched from now: other nodes, and the hub while it is this node's turn to ask it."""

    def __init__(self, peers: FileSources) -> None:
        self.peers = peers
        self._has_turn = False
        self._ask_hub_at = 0.0
        self._lock = threading.Lock()
        self._busy: Counter[str] = Counter()
        self._bad: dict[tuple[str, str], str] = {}
        """(node, etag) of what turned out wrong, with the reason."""
        self._used: set[str] = set()

    def give_turn(self, has_turn: bool) -> None:
        """It is, or is not, this node's turn at the hub. What another node fetched last may be there by now: all
        are asked anew before the hub is.
        """
        if has_turn and not self._has_turn:
            self.peers.forget_answers()
            self._ask_hub_at = time.monotonic() + FIRST_ANSWER_S
        self._has_turn = has_turn

    @property
    def may_ask_hub(self) -> bool:
        return self._has_turn and (self.peers.all_answered() or time.monotonic() > self._ask_hub_at)

    @contextlib.contextmanager
    def source(self, file: OfferedFile) -> Iterator[str | None]:
        """The node to ask, HUB, or None where nobody has it yet."""
        offers = {
            node: {one.etag for one in files.files if one.here} for node, files in self.peers.offers().items()
        }
        with self._lock:
            found = choose_source(file.etag, offers, self._busy, set(self._bad), self.may_ask_hub)
            if found is not None:
                self._busy[found] += 1
                self._used.add(found)
        try:
            yield found
        finally:
            if found is not None:
                with self._lock:
                    self._busy[found] -= 1

    def distrust(self, node: str, file: OfferedFile, text: str) -> None:
        with self._lock:
            self._bad[node, file.etag] = text

    def why_bad(self, file: OfferedFile) -> str:
        """What was wrong with this file at nodes that have it; empty where nothing was."""
        with self._lock:
            texts = [text for (_, etag), text in self._bad.items() if etag == file.etag]
        return texts[0] if texts else ""

    def used(self) -> tuple[str, ...]:
        """The names of those who gave something, the hub by its own."""
        names = self.peers.names()
        with self._lock:
            return tuple(sorted(hub() if one == HUB else names.get(one, one) for one in self._used))


def fetch_all(repository: Repository, sources: Sources, worked: Callable[[int], None]) -> None:
    """Returns when every file is there. `worked(bytes)` is called for what was received or checked, and with 0
    while another node is waited for.
    """
    (repository.folder / "blobs").mkdir(parents=True, exist_ok=True)
    with _alone(repository.folder):
        missing = [file for file in repository.files if not repository.blob(file).exists()]
        _check_space(repository)
        missing.sort(key=lambda file: -file.size)
        pool = ThreadPoolExecutor(PARALLEL)
        try:
            for done in [pool.submit(_fetch_or_tell, repository, file, sources, worked) for file in missing]:
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


def _fetch_or_tell(
    repository: Repository, file: OfferedFile, sources: Sources, worked: Callable[[int], None]
) -> None:
    """Where the hub cannot help, what a node sent is what a person must know."""
    try:
        _fetch(repository, file, sources, worked)
    except Exception as error:
        is_disk = isinstance(error, OSError) and error.errno is not None
        if not is_disk and (text := sources.why_bad(file)):
            raise DownloadError("damaged", text) from error
        raise


class _DiskError(Exception):
    """This host's own disk: no other node mends it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _fetch(repository: Repository, file: OfferedFile, sources: Sources, worked: Callable[[int], None]) -> None:
    """Tries until nothing comes any more. A part that cannot be right is thrown away."""
    part, barren = repository.part(file), 0
    while not repository.blob(file).exists():
        before = _size(part)
        with sources.source(file) as source:
            if source is None and before < file.size:
                _wait(repository, file, sources, worked)
                continue
            trouble, whole = _try(source, repository, file, sources, worked)
        if whole:
            part.replace(repository.blob(file))
            return
        have = _size(part)
        if have >= file.size:
            part.unlink(missing_ok=True)
            if source is not None and source != HUB:
                sources.distrust(source, file, _lies(repository, file, sources.peers.names().get(source, source)))
        if source != HUB:
            time.sleep(LOOK_AGAIN_S)
            continue
        barren = 0 if before < have < file.size else barren + 1
        if barren >= MAX_BARREN_TRIES:
            raise trouble or _wrong(repository, file, have)
        time.sleep(PAUSES_S[min(barren, len(PAUSES_S) - 1)])


def _wait(repository: Repository, file: OfferedFile, sources: Sources, worked: Callable[[int], None]) -> None:
    """A repository's file may still come from the node that asks the hub; a folder's from nowhere."""
    text = sources.why_bad(file)
    if text and repository.model.startswith("/"):
        raise DownloadError("damaged", text)
    worked(0)
    time.sleep(LOOK_AGAIN_S)


def _try(
    source: str | None, repository: Repository, file: OfferedFile, sources: Sources, worked: Callable[[int], None]
) -> tuple[Exception | None, bool]:
    """What went wrong, if it may pass; and is the part whole and right?"""
    part, trouble = repository.part(file), None
    with FollowingDigest(part, file) as digest:
        try:
            if source is not None and (_size(part) < file.size or not part.exists()):
                _receive(source, repository, file, sources, digest, worked)
        except _DiskError as error:
            raise error.error from None
        except Exception as error:
            trouble = _passing(error, source, file, sources)
        return trouble, _size(part) == file.size and is_whole(part, file, digest, worked)


def _passing(error: Exception, source: str | None, file: OfferedFile, sources: Sources) -> Exception | None:
    """What to tell if nothing comes any more. Raises what no other try can mend."""
    if source == HUB:
        if not _is_passing(error):
            raise error
        return None if _status_of(error) == RANGE_REFUSED else error
    if source is not None and isinstance(error, RefusedError):
        sources.distrust(source, file, f"{sources.peers.names().get(source, source)} gives no {file.name}: {error}")
    elif not isinstance(error, (OSError, FrameError)):
        raise error
    return None


def _receive(
    source: str,
    repository: Repository,
    file: OfferedFile,
    sources: Sources,
    digest: FollowingDigest,
    worked: Callable[[int], None],
) -> None:
    part = repository.part(file)
    if source == HUB:
        _receive_from_hub(repository, file, part, digest, worked, lambda: sources.may_ask_hub)
        return
    with sources.peers.connected(source) as connection, _appended(part) as out:

        def take(piece: memoryview) -> None:
            try:
                out.write(piece)
            except OSError as error:
                raise _DiskError(error) from None
            digest.grew(len(piece))
            worked(len(piece))

        connection.receive(repository.model, file.name, out.tell(), file.size, take)


def _appended(part: Path) -> io.FileIO:
    try:
        return part.open("ab", buffering=0)
    except OSError as error:
        raise _DiskError(error) from None


def _lies(repository: Repository, file: OfferedFile, name: str) -> str:
    where = f"exoctl model rm {repository.model}" if not repository.model.startswith("/") else "check its disk"
    return (
        f"what {name} sends of {repository.model}/{file.name} has another checksum than announced and was thrown "
        f"away: its copy is damaged; on {name}: {where}"
    )


def _wrong(repository: Repository, file: OfferedFile, have: int) -> DownloadError:
    what = f"what {hub()} sends of {repository.model}/{file.name}"
    if have == file.size:
        return DownloadError("damaged", f"{what} has another checksum than announced; it is fetched anew")
    text = f"{what} does not have the size that it announced ({have} bytes instead of {file.size})"
    return DownloadError("damaged", f"{text}: a proxy on the way may change it; it is tried again every minute")


def _receive_from_hub(
    repository: Repository,
    file: OfferedFile,
    part: Path,
    digest: FollowingDigest,
    worked: Callable[[int], None],
    may_go_on: Callable[[], bool],
) -> None:
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
        if not goes_on:
            digest.begin_anew()
        with part.open("ab" if goes_on else "wb", buffering=0) as out:
            for piece in response.iter_raw():
                out.write(piece)
                digest.grew(len(piece))
                worked(len(piece))
                if out.tell() > file.size or not may_go_on():
                    return


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


def missing_text(repository: Repository) -> str:
    """Which files are not here, in words."""
    missing = [file for file in repository.files if not repository.blob(file).exists()]
    names = ", ".join(file.name for file in missing[:MAX_NAMED]) + (" ..." if len(missing) > MAX_NAMED else "")
    size = sum(file.size for file in missing)
    return f"missing are {len(missing)} of {len(repository.files)} files ({gib(size)}): {names}" if missing else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
