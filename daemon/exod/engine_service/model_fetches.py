"""Fetches models to this node's disk, for its rank and for people: carries the models' core.

One process for each model (`model_search.py`), told who may be asked whenever that changes. Keeps on the disk what
people asked for, so that a fetch goes on after a crash. Decides nothing: `core/models/models_core.py` does. Times
are monotonic seconds, sizes bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from exod import data_files
from exod.core.base.cluster_wish import is_repository
from exod.core.models import model_events as events
from exod.core.models.model_events import ModelsCommand, ModelsInput
from exod.core.models.models_core import ModelsCore, newer_record
from exod.engine_service.download_messages import AllowedSources, Job, Progress
from exod.engine_service.model_search import DownloadProcess
from exod.errors import ExitCode, RequestError
from exod.model import ModelFetch, NodeId, PullRecord
from exod.model_transfer.model_places import COPIES, copied
from exod.model_transfer.peer_files import Credentials, FileSource
from exod.model_transfer.transfer_messages import is_model_name
from exoengine.model_files.model_folder import ModelFolderError, find_local, inspect

log = structlog.get_logger()

FILE: Final = "pulls.json"
REPORT_EVERY_S: Final = 1.0
"""While something is fetched: how often others and screens are told how far it is."""


class PullsFile(msgspec.Struct, frozen=True):
    """What `pulls.json` holds."""

    records: tuple[PullRecord, ...] = ()
    had: dict[str, float] = {}
    folders: tuple[str, ...] = ()
    """Of this host, which people here told to be copied: other nodes may ask for their files."""


class ModelFetches:
    """`on_change`: something that others see changed; `on_event(type, subject, data)` takes events."""

    def __init__(
        self,
        me: NodeId,
        name: str,
        hosts_ranks: bool,
        folder: Path,
        credentials: Callable[[], Credentials],
        on_event: Callable[[str, str, dict[str, object]], None],
        on_change: Callable[[], None],
    ) -> None:
        self._me, self._name, self._file = me, name, folder / FILE
        self._credentials, self._on_event, self._on_change = credentials, on_event, on_change
        self.copies = folder / COPIES
        kept = self._read()
        self._folders = set(kept.folders)
        self.core = ModelsCore(me, hosts_ranks, kept.records, kept.had)
        self._running: dict[str, tuple[DownloadProcess, asyncio.Task[None]]] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._progress: dict[str, Callable[[int, int], None]] = {}
        self._places: dict[str, Path] = {}
        self._sources: tuple[FileSource, ...] = ()
        self._tasks: asyncio.TaskGroup | None = None
        self._kick = asyncio.Event()

    def _read(self) -> PullsFile:
        with contextlib.suppress(OSError):
            found = data_files.read(self._file, PullsFile)
            return found if isinstance(found, PullsFile) else PullsFile()
        return PullsFile()

    # --- what is ----------------------------------------------------------------------------------------------

    def fetches(self) -> tuple[ModelFetch, ...]:
        return self.core.fetches(time.monotonic())

    def pulls(self) -> tuple[PullRecord, ...]:
        return tuple(self.core.pulls.values())

    def is_here(self, model: str) -> bool:
        """As far as is known without reading a disk: what was found or fetched since the start."""
        return not is_repository(model) or model in self._places

    def offered_folders(self) -> dict[str, Path]:
        """Called from threads."""
        return {folder: Path(folder) for folder in tuple(self._folders)}

    # --- life -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; may be run again after an error."""
        self._running.clear()
        self.core.begin(time.monotonic())
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            told_at = float("-inf")
            while True:
                now = time.monotonic()
                self._carry_out(self.core.handle_timer(now))
                # Those who are told look at this node again and may wake this loop: so not in each turn.
                if self._running and now >= told_at + REPORT_EVERY_S:
                    told_at = now
                    self._on_change()
                self._kick.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s()):
                        await self._kick.wait()

    def _pause_s(self) -> float | None:
        due = self.core.next_deadline()
        until = None if due is None else max(0.05, due - time.monotonic())
        return min(REPORT_EVERY_S, until or REPORT_EVERY_S) if self._running else until

    def feed(self, event: ModelsInput) -> None:
        self._carry_out(self.core.handle(event, time.monotonic()))
        self._kick.set()

    def follow(self, sources: tuple[FileSource, ...]) -> None:
        """The other nodes and the ways to their files are these now."""
        self._sources = sources
        for model, (process, _) in self._running.items():
            process.tell(self._ways(self._may_ask_hub(model)))

    def _ways(self, may_ask_hub: bool) -> AllowedSources:
        return AllowedSources(may_ask_hub, self._sources, self._credentials())

    def _may_ask_hub(self, model: str) -> bool:
        return any(fetch.model == model and fetch.asks_hub for fetch in self.fetches())

    # --- requests ---------------------------------------------------------------------------------------------

    async def find(self, model: str, progress: Callable[[int, int], None]) -> Path:
        """For this node's rank. Raises ModelFolderError. Cancelling it ends the fetch, unless people want it."""
        self.feed(events.RankLooksFor(model))
        return await self.local(model) or await self._fetched(model, progress)

    async def local(self, model: str) -> Path | None:
        """Its folder, or the copy of another node's; None where it is to be fetched. Raises ModelFolderError."""
        try:
            return await asyncio.to_thread(find_local, model)
        except ModelFolderError as error:
            if error.code != "no_folder" or not model.startswith("/"):
                raise
            folder = await asyncio.to_thread(copied, model, self.copies)
            if folder is None and model not in self.core.pulls:
                text = f"{error} here; to copy it, run on a node that has it: exoctl model pull {model}"
                raise ModelFolderError(error.code, text) from None
            return folder

    async def _fetched(self, model: str, progress: Callable[[int, int], None]) -> Path:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(model, []).append(done)
        self._progress[model] = progress
        try:
            self.feed(events.ModelNeeded(model))
            await done
            return self._places[model]
        finally:
            self._waiters[model].remove(done)
            self._progress.pop(model, None)
            self.feed(events.ModelNotNeeded(model))

    async def pull(self, model: str, everywhere: bool) -> None:
        """Nodes are to have it: all, or those that host ranks. Raises RequestError."""
        if not is_model_name(model):
            text = f"{model} is neither a repository's name (OWNER/NAME) nor the absolute path of a folder"
            raise RequestError("no_such_model", text)
        if model.startswith("/"):
            try:
                await asyncio.to_thread(inspect, Path(model))
            except (ModelFolderError, OSError) as error:
                raise RequestError("no_folder", str(error)) from None
            self._folders.add(model)
        self._ask(model, everywhere, paused=False)

    def pause(self, model: str) -> None:
        """Raises RequestError where nobody pulls it."""
        if model not in self.core.pulls:
            text = f"{model} is not being pulled; exoctl model ls lists what is"
            raise RequestError("no_such_pull", text, ExitCode.USAGE)
        self._ask(model, everywhere=False, paused=True)

    def _ask(self, model: str, everywhere: bool, paused: bool) -> None:
        record = newer_record(self.core.pulls, model, time.time(), self._name, everywhere, paused)
        self._on_event("model.paused" if paused else "model.pull", model, {"everywhere": record.everywhere})
        self.feed(events.PullAsked(record))

    # --- commands ---------------------------------------------------------------------------------------------

    def _carry_out(self, commands: list[ModelsCommand]) -> None:
        for command in commands:
            match command:
                case events.StartFetch(model=model, may_ask_hub=may_ask_hub):
                    self._start(model, may_ask_hub)
                case events.Redirect(model=model, may_ask_hub=may_ask_hub):
                    if model in self._running:
                        self._running[model][0].tell(self._ways(may_ask_hub))
                case events.StopFetch(model=model):
                    self._stop(model)
                case events.FetchOver(model=model, failure=failure):
                    self._over(model, failure)
                case events.KeepPulls(records=records, had=had):
                    self._keep(PullsFile(records, had, tuple(sorted(self._folders))))
                case events.FetchesChanged():
                    self._on_change()
                case events.EmitFetchEvent(type=kind, fetch=fetch):
                    self._on_event(kind, fetch.model, _event_data(fetch))

    def _start(self, model: str, may_ask_hub: bool) -> None:
        self._stop(model)
        if self._tasks is None:
            return
        process = DownloadProcess(
            Job(model, str(self.copies)),
            lambda seen: self._progressed(model, seen),
        )
        process.tell(self._ways(may_ask_hub))
        task = self._tasks.create_task(self._fetch(model, process), name=f"fetch {model}")
        self._running[model] = process, task

    async def _fetch(self, model: str, process: DownloadProcess) -> None:
        try:
            here: Path | None = await asyncio.to_thread(_folder, model)
            self._places[model] = here or await process.run()
        except ModelFolderError as error:
            outcome: ModelsInput = events.FetchFailed(model, error.code, str(error))
        except (OSError, ValueError) as error:
            outcome = events.FetchFailed(model, "download", f"{model} could not be fetched: {error}")
        else:
            outcome = events.FetchEnded(model)
        if self._running.get(model, (None,))[0] is process:
            del self._running[model]
            self.feed(outcome)

    def _progressed(self, model: str, seen: Progress) -> None:
        self.feed(events.FetchProgress(model, seen.done_bytes, seen.total_bytes, seen.sources))
        if model in self._progress:
            self._progress[model](seen.done_bytes, seen.total_bytes)

    def _stop(self, model: str) -> None:
        if model in self._running:
            _, task = self._running.pop(model)
            task.cancel()

    def _over(self, model: str, failure: tuple[str, str] | None) -> None:
        for waiter in self._waiters.get(model, ()):
            if not waiter.done():
                if failure is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(ModelFolderError(*failure))

    def _keep(self, kept: PullsFile) -> None:
        fresh = self._file.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(kept))
            os.replace(fresh, self._file)
        except OSError as error:  # a full disk: the other nodes remember the records, too
            log.warning("pulls_not_kept", file=str(self._file), error=error.strerror)


def _folder(model: str) -> Path | None:
    """A folder of this host needs no copy."""
    folder = Path(model)
    return folder if model.startswith("/") and folder.is_dir() else None


def _event_data(fetch: ModelFetch) -> dict[str, object]:
    data: dict[str, object] = {"done_bytes": fetch.done_bytes, "total_bytes": fetch.total_bytes}
    if fetch.sources:
        data["sources"] = list(fetch.sources)
    if fetch.bytes_per_s:
        data |= {"bytes_per_s": fetch.bytes_per_s, "left_s": fetch.left_s}
    if fetch.text:
        data |= {"code": fetch.code, "text": fetch.text}
    return data
