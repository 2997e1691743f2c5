"""What the process of a download tells the daemon: one JSON object a line on its standard output."""

from __future__ import annotations

import msgspec


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    done_bytes: int
    """Of the model's files what lies on the disk, from this download or an earlier one."""
    total_bytes: int
    """As the hub announced it."""
    work: int
    """Rises while anything is done, checks of finished files included: one that stands still means silence."""


class FolderFound(msgspec.Struct, frozen=True, tag="found"):
    folder: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """`code` as in ModelFolderError; `text` is one line for people, with the cure."""

    code: str
    text: str


DownloadMessage = Progress | FolderFound | Failed
