"""The process of one download: `python -P -m exod.engine_service.download_process MODEL`.

A process of its own because a thread that waits for a hub cannot be ended. The daemon tells it on its standard
input what to fetch and, whenever that changes, who may be asked; it answers on its standard output
(`download_messages.py`) and ends with the daemon: its standard input closes when that dies, however it dies.
`MODEL` is for people who read a list of processes.
"""

from __future__ import annotations

import os
import signal
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from exod.engine_service.download_files import (
    DownloadError,
    Repository,
    Sources,
    fetch_all,
    hub,
    is_disk_full,
    is_network,
    listed,
    missing_text,
    offered,
)
from exod.engine_service.download_messages import (
    AllowedSources,
    DownloadMessage,
    Failed,
    FolderFound,
    Job,
    Order,
    Progress,
)
from exod.model_transfer.model_places import copied, place_of, put_together, write_list
from exod.model_transfer.peer_files import Credentials, FileConnection, FileSource, FileSources, client_context
from exod.model_transfer.transfer_messages import PATTERNS
from exod.peers.trust import load_chain, peer_id
from exoengine.decoding import decode
from exoengine.model_files.model_folder import ModelFolderError, inspect

PROGRESS_EVERY_S: Final = 0.5

_orders: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in the daemon's terminal: no stack trace
    job = _next_order()
    if not isinstance(job, Job):
        os._exit(1)
    download = Download(job)
    threading.Thread(target=download.follow_orders, daemon=True).start()
    try:
        _tell(FolderFound(str(download.find())))
    except Exception as error:
        code, text = _told(job.model, error, download.repository)
        _tell(Failed(code, text))
    sys.stdout.flush()
    os._exit(0)  # other files may still be on their way in threads


def _next_order() -> Order | None:
    """None at the end: the daemon has gone."""
    line = sys.stdin.buffer.readline()
    return decode(_orders, line) if line else None


def _tell(message: DownloadMessage) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


class Download:
    """Of one model."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._is_folder = job.model.startswith("/")
        self._context: ssl.SSLContext | None = None
        self._credentials: Credentials | None = None
        self.reporter = _ProgressLines()
        self._peers = FileSources(job.model, self._connect, lambda: self.reporter.worked(1))
        self._sources = Sources(self._peers)
        self._ordered = threading.Event()
        self.repository: Repository | None = None

    def _connect(self, source: FileSource) -> FileConnection:
        assert self._context is not None
        return FileConnection(source, self._context, peer_id)

    def follow_orders(self) -> None:
        """Until the daemon ends, and this process with it."""
        while isinstance(ways := _next_order(), AllowedSources):
            if ways.credentials is not None and ways.credentials != self._credentials:
                self._credentials = ways.credentials
                self._context = client_context(ways.credentials, load_chain)
            self._peers.follow(ways.sources)
            self._sources.give_turn(ways.may_ask_hub and not self._is_folder)
            self._ordered.set()
        os._exit(1)

    def find(self) -> Path:
        """What is here whole is taken as it is: a node without a network can start, and all nodes keep one
        revision.
        """
        model = self._job.model
        if (folder := self._here()) is not None:
            return folder
        self._ordered.wait()
        threading.Thread(target=self.reporter.run, daemon=True).start()
        repository = self.repository = self._list()
        self.reporter.begin(repository, self._sources)
        (repository.folder / "blobs").mkdir(parents=True, exist_ok=True)
        write_list(repository.folder, repository.file_list)
        fetch_all(repository, self._sources, self.reporter.worked)
        self.reporter.report()
        folder = put_together(repository.folder, repository.file_list)
        if self._is_folder and copied(model, Path(self._job.copies)) is None:
            raise DownloadError("damaged", f"the copy of {model} is not whole: it is fetched again")
        return folder

    def _here(self) -> Path | None:
        return copied(self._job.model, Path(self._job.copies)) if self._is_folder else _here(self._job.model)

    def _list(self) -> Repository:
        """Another node's list where one has something, else the hub's, when this node may ask it."""
        while True:
            offers = self._peers.offers()
            if offers:
                fullest = max(
                    offers.values(), key=lambda files: sum(file.size for file in files.files if file.here)
                )
                return offered(self._job.model, fullest, self._place())
            if self._sources.may_ask_hub:
                return listed(self._job.model)
            self.reporter.worked(1)
            time.sleep(0.05)

    def _place(self) -> Path:
        from huggingface_hub import constants

        return place_of(self._job.model, Path(constants.HF_HUB_CACHE), Path(self._job.copies))


def _here(model: str) -> Path | None:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(model, local_files_only=True, allow_patterns=list(PATTERNS)))
        inspect(folder)
    except (errors.LocalEntryNotFoundError, ModelFolderError, OSError):
        return None
    return folder


class _ProgressLines:
    """Tells how much lies on the disk, whenever something was done."""

    def __init__(self) -> None:
        self._repository: Repository | None = None
        self._sources: Sources | None = None
        self._lock = threading.Lock()
        self._work = 0
        self._told = Progress(-1, 0, 0)

    def begin(self, repository: Repository, sources: Sources) -> None:
        self._repository, self._sources = repository, sources

    def worked(self, count: int) -> None:
        """0: another node is waited for, which is no silence."""
        with self._lock:
            self._work += max(count, 1)

    def run(self) -> None:
        pause = threading.Event()
        while True:
            self.report()
            pause.wait(PROGRESS_EVERY_S)

    def report(self) -> None:
        repository, sources = self._repository, self._sources
        if repository is None or sources is None:
            progress = Progress(0, 0, self._work)
        else:
            progress = Progress(repository.done_bytes(), repository.total_bytes, self._work, sources.used())
        if progress != self._told:
            self._told = progress
            _tell(progress)


def _told(model: str, error: Exception, repository: Repository | None) -> tuple[str, str]:
    """A code, and a line that says what is wrong and what to do."""
    code, text = _reason(model, error)
    if code == "no_network" and repository is not None:
        text += f"; {missing_text(repository)}"
    return code, text


def _reason(model: str, error: Exception) -> tuple[str, str]:
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", 0)
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    match error:
        case DownloadError(code=code):
            return code, str(error)
        case errors.GatedRepoError():
            return "gated", (
                f"{model} is a gated model: accept its terms on {constants.ENDPOINT}/{model}, then run "
                "`hf auth login` as this user on every node (HF_TOKEN of a shell does not reach a service)"
            )
        case errors.RepositoryNotFoundError():
            return "no_such_model", (
                f"{model} is neither a folder here nor a repository on {hub()} that this node may see: check the "
                "spelling; for a private one run `hf auth login` as this user on every node"
            )
        case errors.OfflineModeIsEnabled():
            return "no_network", (
                f"{model} is not here yet, and HF_HUB_OFFLINE forbids a download: start exod without that variable"
            )
        case _ if is_disk_full(error):
            place = Path(str(constants.HF_HUB_CACHE))
            return "disk_full", f"the disk of {place} is full: free space there, or set HF_HOME to another disk"
        case _ if status in (401, 403):
            return "gated", (
                f"{hub()} refuses {model} to this node ({status}): run `hf auth login` as this user with a token "
                f"that may read it, or accept its terms on {constants.ENDPOINT}/{model}"
            )
        case _ if status:
            return "download", f"{hub()} answers {status} for {model}; it is asked again every minute"
        case _ if is_network(error):
            return "no_network", (
                f"{model} is not here yet and {hub()} cannot be reached ({reason}): check this node's network, DNS "
                "and proxy settings, or copy the model's folder here and load it by its path"
            )
        case PermissionError():
            return "unwritable", f"{error.filename} cannot be written: {error.strerror}"
        case _:
            return "download", f"{model} could not be downloaded: {type(error).__name__}: {reason}"


if __name__ == "__main__":
    main()
