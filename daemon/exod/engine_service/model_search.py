"""Finds a model's folder, downloads it where it is a repository, and reads what it is.

A download runs in a process of its own, which is killed at once when nobody wants the model any more or the daemon
leaves; the next one goes on where it stopped. Whatever goes wrong is a ModelFolderError: a folder that cannot be
read, a full disk or a bug in a library is that model's failure, with a reason, and never the daemon's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from exod.engine_service.download_messages import (
    AllowedSources,
    DownloadMessage,
    Failed,
    FolderFound,
    Job,
    Order,
    Progress,
)
from exoengine.decoding import decode
from exoengine.model_files.model_folder import ModelFolderError, ModelSummary, find_local, inspect

log = structlog.get_logger()

COMMAND: Final = (sys.executable, "-P", "-m", "exod.engine_service.download_process")

SILENCE_S: Final = 75.0
"""Without a byte received or checked. Longer than the three tries of 20 s that a file gets, so that what they found
is told first."""

KILLED_S: Final = 2.0
"""A killed process is gone in milliseconds, unless the kernel holds it on a dead disk: that is not waited for."""

KEPT_STDERR_BYTES: Final = 4096

Find = Callable[[str, Callable[[int, int], None]], Awaitable[Path]]
"""Of a model's name and a progress in bytes; gives its folder. Raises ModelFolderError."""

_decoder = msgspec.json.Decoder(DownloadMessage)


async def look(model: str, local: Callable[[str], Awaitable[Path | None]]) -> ModelSummary | None:
    """What is here of it, before a model that runs is let go; None where it is to be fetched: what only the hub
    knows is found out by the download. `local` finds its folder. Raises ModelFolderError.
    """
    folder = await local(model)
    if folder is None:
        return None
    summary = await asyncio.to_thread(inspect, folder)
    if not summary.is_known:
        text = f"{folder}: mlx-lm has no architecture {summary.model_type!r}"
        raise ModelFolderError("unknown_architecture", text)
    return summary


async def find_here_or_at_hub(model: str, progress: Callable[[int, int], None]) -> Path:
    """For a command where no daemon runs. Raises ModelFolderError."""
    return await asyncio.to_thread(find_local, model) or await _hub_download(model, progress)


async def _hub_download(model: str, progress: Callable[[int, int], None]) -> Path:
    download = DownloadProcess(Job(model), lambda seen: progress(seen.done_bytes, seen.total_bytes))
    download.tell(AllowedSources(may_ask_hub=True))
    return await download.run()


async def search(
    model: str, progress: Callable[[int, int], None], find: Find = find_here_or_at_hub
) -> tuple[Path, ModelSummary]:
    """The folder and what it holds. `progress(done_bytes, total_bytes)` is called from the loop while it is
    downloaded. Cancelling it ends the download. Raises ModelFolderError.
    """
    try:
        folder = await find(model, progress)
        return folder, await asyncio.to_thread(inspect, folder)
    except ModelFolderError:
        raise
    except Exception as error:
        log.error("model_search_failed", model=model, exc_info=error)
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        text = f"{model} could not be read: {type(error).__name__}: {reason}"
        raise ModelFolderError("unreadable", text) from error


class DownloadProcess:
    """One process, started by `run`; what it is told before is kept until then."""

    def __init__(self, job: Job, progress: Callable[[Progress], None]) -> None:
        self._job, self._progress = job, progress
        self._ways: AllowedSources | None = None
        self._told: AllowedSources | None = None
        self._stdin: asyncio.StreamWriter | None = None

    def tell(self, ways: AllowedSources) -> None:
        """Who may be asked from now on."""
        self._ways = ways
        if self._stdin is not None and ways != self._told:
            self._told = ways
            self._stdin.write(_line(ways))

    async def run(self) -> Path:
        """The folder, once all is there. Raises ModelFolderError. Cancelling it ends the process."""
        model = self._job.model
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            model,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        written = asyncio.create_task(_last_of(process.stderr), name="download: stderr")
        log.info("download_started", model=model, pid=process.pid)
        try:
            self._stdin = process.stdin
            self._stdin.write(_line(self._job))
            if self._ways is not None:
                self.tell(self._ways)
            while (line := await self._next_line(process.stdout)) and (folder := self._said(line)) is None:
                pass
            if line and folder is not None:
                return folder
            code_text = f"the process of the download ended ({await process.wait()})"
            log.error("download_died", model=model, written=await written)
            raise ModelFolderError("download", f"{model} could not be downloaded: {code_text}")
        finally:
            self._stdin = None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            written.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILLED_S):
                    await process.wait()
            log.info("download_ended", model=model, pid=process.pid)

    async def _next_line(self, stream: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(SILENCE_S):
                return await stream.readline()
        except TimeoutError:
            raise ModelFolderError("hub_silent", _silent_text(self._job.model)) from None

    def _said(self, line: bytes) -> Path | None:
        """The folder, once it is told."""
        match decode(_decoder, line):
            case Progress() as seen:
                if seen.total_bytes:  # before that it is a sign of life alone
                    self._progress(seen)
            case FolderFound(folder=folder):
                return Path(folder)
            case Failed(code=code, text=text):
                raise ModelFolderError(code, text)
        return None


def _line(order: Order) -> bytes:
    return msgspec.json.encode(order) + b"\n"


def _silent_text(model: str) -> str:
    return (
        f"no data of {model} arrived for {SILENCE_S:g} s: the hub or a proxy on the way does not answer; it is "
        "asked again every minute, and the download goes on where it stopped"
    )


async def _last_of(stream: asyncio.StreamReader) -> str:
    """Read all the time, or the process would stand still at a full pipe."""
    kept = b""
    while piece := await stream.read(KEPT_STDERR_BYTES):
        kept = (kept + piece)[-KEPT_STDERR_BYTES:]
    return kept.decode("utf-8", "replace")
