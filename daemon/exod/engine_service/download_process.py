"""The process of one download: `python -P -m exod.engine_service.download_process REPOSITORY`.

A process of its own because a thread that waits for a hub cannot be ended. Tells the daemon on its standard output
(`download_messages.py`) and ends with it: its standard input closes when the daemon dies, however it dies.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec

from exod.engine_service.download_files import (
    PATTERNS,
    DownloadError,
    Repository,
    fetch_all,
    hub,
    is_disk_full,
    is_network,
    listed,
)
from exod.engine_service.download_messages import DownloadMessage, Failed, FolderFound, Progress
from exoengine.model_files.model_folder import ModelFolderError, inspect

PROGRESS_EVERY_S: Final = 0.5


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in the daemon's terminal: no stack trace
    threading.Thread(target=_end_with_the_daemon, daemon=True).start()
    model = sys.argv[1]
    try:
        _tell(FolderFound(str(_find(model))))
    except Exception as error:
        code, text = _told(model, error)
        _tell(Failed(code, text))
    sys.stdout.flush()
    os._exit(0)  # other files may still be on their way in threads


def _end_with_the_daemon() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


def _tell(message: DownloadMessage) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _find(model: str) -> Path:
    """What is here whole is taken as it is: a node without a network can start, and all nodes keep one revision."""
    from huggingface_hub import snapshot_download

    if (folder := _here(model)) is not None:
        return folder
    repository = listed(model)
    reporter = _ProgressLines(repository)
    threading.Thread(target=reporter.run, daemon=True).start()
    fetch_all(repository, reporter.worked)
    reporter.report()
    return Path(snapshot_download(model, allow_patterns=list(PATTERNS)))


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

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._lock = threading.Lock()
        self._work = 0
        self._told = Progress(-1, 0, 0)

    def worked(self, count: int) -> None:
        with self._lock:
            self._work += count

    def run(self) -> None:
        pause = threading.Event()
        while True:
            self.report()
            pause.wait(PROGRESS_EVERY_S)

    def report(self) -> None:
        progress = Progress(self._repository.done_bytes(), self._repository.total_bytes, self._work)
        if progress != self._told:
            self._told = progress
            _tell(progress)


def _told(model: str, error: Exception) -> tuple[str, str]:
    """A code, and a line that says what is wrong and what to do."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", 0)
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    match error:
        case DownloadError(code=code):
            return code, str(error)
        case errors.GatedRepoError():
            return "gated", (
                f"{model} must be asked for: accept its terms on {constants.ENDPOINT}/{model}, then run "
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
