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
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from exod.engine_service.download_messages import DownloadMessage, Failed, FolderFound, Progress
from exod.errors import ExitCode, RequestError
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

_decoder = msgspec.json.Decoder(DownloadMessage)


async def search(model: str, progress: Callable[[int, int], None]) -> tuple[Path, ModelSummary]:
    """The folder and what it holds. `progress(done_bytes, total_bytes)` is called from the loop while it is
    downloaded. Cancelling it ends the download. Raises ModelFolderError.
    """
    try:
        folder = await asyncio.to_thread(find_local, model) or await _download(model, progress)
        return folder, await asyncio.to_thread(inspect, folder)
    except ModelFolderError:
        raise
    except Exception as error:
        log.error("model_search_failed", model=model, exc_info=error)
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        text = f"{model} could not be read: {type(error).__name__}: {reason}"
        raise ModelFolderError("unreadable", text) from error


async def check_model(model: str) -> None:
    """Before the model that runs is let go: is this one here and readable, or at least a repository's name? Raises
    RequestError where not. What only the hub knows is found out by the download, and told by the ranks.
    """
    try:
        folder = await asyncio.to_thread(find_local, model)
        if folder is not None:
            await asyncio.to_thread(inspect, folder)
    except ModelFolderError as error:
        text = f"{error}; the model that runs goes on"
        raise RequestError(error.code, text, ExitCode.INTERNAL) from error


async def _download(model: str, progress: Callable[[int, int], None]) -> Path:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        model,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    written = asyncio.create_task(_last_of(process.stderr), name="download: stderr")
    log.info("download_started", model=model, pid=process.pid)
    try:
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    line = await process.stdout.readline()
            except TimeoutError:
                raise ModelFolderError("hub_silent", _silent_text(model)) from None
            match decode(_decoder, line) if line else None:
                case Progress(done_bytes=done, total_bytes=total):
                    progress(done, total)
                case FolderFound(folder=folder):
                    return Path(folder)
                case Failed(code=code, text=text):
                    raise ModelFolderError(code, text)
                case None:
                    code_text = f"the process of the download ended ({await process.wait()})"
                    log.error("download_died", model=model, written=await written)
                    raise ModelFolderError("download", f"{model} could not be downloaded: {code_text}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        written.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILLED_S):
                await process.wait()
        log.info("download_ended", model=model, pid=process.pid)


def _silent_text(model: str) -> str:
    return (
        f"nothing of {model} came for {SILENCE_S:g} s: the hub or a proxy on the way is silent; it is asked again "
        "every minute, and goes on where it stopped"
    )


async def _last_of(stream: asyncio.StreamReader) -> str:
    """Read all the time, or the process would stand still at a full pipe."""
    kept = b""
    while piece := await stream.read(KEPT_STDERR_BYTES):
        kept = (kept + piece)[-KEPT_STDERR_BYTES:]
    return kept.decode("utf-8", "replace")
