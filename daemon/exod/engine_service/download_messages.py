"""What the daemon and the process of a download tell each other: one JSON object a line, on its standard input and
output.
"""

from __future__ import annotations

import msgspec

from exod.model_transfer.peer_files import Credentials, FileSource


class Job(msgspec.Struct, frozen=True, tag="job"):
    """The first line. A folder's path instead of a repository is a folder of another node."""

    model: str
    copies: str = ""
    """The folder where copies of other nodes' folders lie."""


class AllowedSources(msgspec.Struct, frozen=True, tag="ways"):
    """Who may be asked from now on."""

    may_ask_hub: bool
    sources: tuple[FileSource, ...] = ()
    credentials: Credentials | None = None
    """Of the cluster; None where no daemon runs: then the hub alone is asked."""


Order = Job | AllowedSources


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    done_bytes: int
    """Of the model's files what lies on the disk, from this download or an earlier one."""
    total_bytes: int
    """As the hub announced it."""
    work: int
    """Rises while anything is done, checks of finished files included: one that stands still means silence."""
    sources: tuple[str, ...] = ()
    """Names of the nodes, and of the hub, that something came from."""


class FolderFound(msgspec.Struct, frozen=True, tag="found"):
    folder: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """`code` as in ModelFolderError; `text` is one line for people, with the cure."""

    code: str
    text: str


DownloadMessage = Progress | FolderFound | Failed
