"""Finds (or downloads) a model and reads what it is, in a thread of its own.

Whatever goes wrong is a ModelFolderError: a folder that cannot be read, a full disk or a bug in a library is that
model's failure, with a reason, and never the daemon's end. Called by the engine host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from exoengine.model_files.model_folder import ModelFolderError, ModelSummary, inspect, resolve

log = structlog.get_logger()


async def search(model: str, progress: Callable[[int, int], None]) -> tuple[Path, ModelSummary]:
    """The folder and what it holds. `progress(done, total)` is called from the loop. Raises ModelFolderError."""
    loop = asyncio.get_running_loop()

    def note(done: int, total: int) -> None:
        loop.call_soon_threadsafe(progress, done, total)

    def find() -> tuple[Path, ModelSummary]:
        folder = resolve(model, progress=note)
        return folder, inspect(folder)

    try:
        return await asyncio.to_thread(find)
    except ModelFolderError:
        raise
    except Exception as error:
        log.error("model_search_failed", model=model, exc_info=error)
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        text = f"{model} could not be read: {type(error).__name__}: {reason}"
        raise ModelFolderError("unreadable", text) from error
