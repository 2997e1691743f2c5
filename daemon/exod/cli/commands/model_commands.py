"""`exoctl model`: the models on this host and in the cluster: which there are, fetching one, removing one.

Where a daemon runs, `pull` asks it, and all nodes take part; without one it downloads to this host by the same
process as the daemon, so that one goes on with what the other left. Never loads a model.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exod.cli.base import values
from exod.cli.base.options import Commands, Shell, UsageError
from exod.errors import ExitCode, RequestError

if TYPE_CHECKING:
    from exod.engine_service.model_cache import CachedModel
    from exoengine.model_files.model_folder import ModelFolderError

REPORT_EVERY_S = 5.0
"""Between two lines of progress where standard error is no terminal."""


def register(commands: Commands) -> None:
    model = commands.group("model", "the models on the nodes: list, fetch, remove", ls)
    model.add("ls", ls)
    pulled = model.add("pull", pull)
    pulled.add_argument(
        "repository",
        type=values.name,
        metavar="MODEL",
        help="a Hugging Face repository, OWNER/NAME, or a folder of this host",
    )
    pulled.add_argument("--all", dest="everywhere", action="store_true", help="to nodes that hold no layers, too")
    model.add("pause", pause).add_argument(
        "name", type=values.name, metavar="MODEL", help="as it was given to pull"
    )
    told = model.add("info", info)
    told.add_argument(
        "name", type=values.name, metavar="NAME", help="as exoctl model ls shows it, a folder, or embedded:count"
    )
    removed = model.add("rm", rm)
    removed.add_argument("name", type=values.name, metavar="NAME", help="as exoctl model ls shows it")
    removed.add_argument("-y", "--yes", action="store_true", help="do not ask")


def ls(shell: Shell) -> ExitCode:
    """Every model in this user's Hugging Face cache, and each copy of another node's folder: is it whole?"""
    from exod.cli.base.paint import Cell, mib
    from exod.engine_service.model_cache import cached_models
    from exoengine.model_files.model_folder import ModelFolderError

    try:
        models = cached_models(_copies(shell))
    except ModelFolderError as error:
        raise _refused(error) from None
    loaded = _loaded(shell)
    if shell.as_json:
        shell.show_value({"models": [_plain(one, loaded) for one in models]})
        return ExitCode.OK
    if not models:
        shell.show(["no model was downloaded on this host yet; try: exoctl model pull OWNER/NAME"])
        return ExitCode.OK
    rows = [
        [
            Cell(one.name, "bold"),
            Cell(mib(one.size_bytes), right=True),
            Cell("in use" if one.name == loaded else "whole" if one.folder else f"not whole: {one.text}", "dim"),
        ]
        for one in models
    ]
    shell.show(shell.paint().columns(rows, width=shell.width))
    return ExitCode.OK


def info(shell: Shell, name: str) -> ExitCode:
    """What a model is: architecture, layers, size, context, and where it lies."""
    from exod.cli.base.paint import mib
    from exod.engine_service.model_cache import any_model, summary_of
    from exoengine.model_files.model_folder import ModelFolderError

    try:
        model = any_model(name, _copies(shell))
        summary = summary_of(model)
    except ModelFolderError as error:
        raise _refused(error) from None
    facts = {
        "name": model.name,
        "folder": str(model.folder),
        "architecture": summary.model_type,
        "layers": summary.total_layers,
        "weight_bytes": summary.weight_bytes,
        "max_context_tokens": summary.max_context_tokens,
        "fingerprint": summary.fingerprint,
    }
    if shell.as_json:
        shell.show_value(facts)
        return ExitCode.OK
    shell.show(
        [
            model.name,
            f"  {summary.model_type}, {summary.total_layers} layers, {mib(summary.weight_bytes)} of weights",
            f"  context of {summary.max_context_tokens} tokens"
            if summary.max_context_tokens
            else "  no limit of context",
            f"  {model.folder}",
        ]
    )
    return ExitCode.OK


def pull(shell: Shell, repository: str, everywhere: bool) -> ExitCode:
    """Brings a model to every node that holds layers, going on where an earlier try stopped: downloaded once, and
    handed on between nodes. A folder is copied to the nodes that lack it. Without a running exod: to this host.
    """
    import os

    from exod.cli.base.client import NoDaemonError
    from exod.cli.commands.model_pull import pull_in_cluster

    model = os.path.abspath(repository) if os.path.isdir(repository) else repository
    try:
        with shell.daemon() as daemon:
            return pull_in_cluster(shell, daemon, model, everywhere)
    except NoDaemonError:
        return _pull_here(shell, repository)


def pause(shell: Shell, name: str) -> ExitCode:
    """All nodes stop fetching a model and keep what came; pull goes on with it."""
    from exod.cli.commands.engine_commands import run_command

    return run_command(shell, "model_pause", model=name)


def _pull_here(shell: Shell, repository: str) -> ExitCode:
    import asyncio

    from exod.engine_service.model_search import search
    from exoengine.model_files.model_folder import ModelFolderError, find_local

    _say_nothing_of_ours()
    progress = _FetchLine()
    try:
        if find_local(repository) is not None:
            text = f"{repository} is a folder on this host: load it by its path; to copy it, start exod first"
            raise UsageError(text)
        folder, summary = asyncio.run(search(repository, progress))
    except ModelFolderError as error:
        raise _refused(error) from None
    finally:
        progress.close()
    if shell.as_json:
        shell.show_value({"name": repository, "folder": str(folder), "weight_bytes": summary.weight_bytes})
    else:
        shell.show([f"{repository} is here: {folder}", f"to run it: exoctl engine load {repository}"])
    return ExitCode.OK


def rm(shell: Shell, name: str, yes: bool) -> ExitCode:
    """Removes a model from this host's disk. One that the engine uses is left."""
    from exod.cli.base.paint import mib
    from exod.engine_service.model_cache import cached_model, remove
    from exoengine.model_files.model_folder import ModelFolderError

    try:
        model = cached_model(name, _copies(shell))
        if name == _loaded(shell):
            text = f"{name} is what the engine runs; first: exoctl engine unload"
            raise RequestError("in_use", text, ExitCode.USAGE)
        if not yes and not _agreed(f"remove {name} ({mib(model.size_bytes)}) from this host's disk?"):
            shell.show(["left as it is"])
            return ExitCode.OK
        freed = remove(name, _copies(shell))
    except ModelFolderError as error:
        raise _refused(error) from None
    if shell.as_json:
        shell.show_value({"name": name, "freed_bytes": freed})
    else:
        shell.show([f"removed {name}: {mib(freed)} are free again"])
    return ExitCode.OK


def _copies(shell: Shell) -> Path:
    """Where the daemon of this socket keeps copies of other nodes' folders."""
    from exod.model_transfer.model_places import COPIES

    return shell.socket_path().parent / COPIES


def _say_nothing_of_ours() -> None:
    """The daemon's log lines would stand between the lines of a command, and inside its JSON."""
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


class _FetchLine:
    """A line that is drawn over itself on a terminal, else one every few seconds; on standard error."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._told_at = float("-inf")
        self._first: tuple[float, int] | None = None
        self._drawn = False

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if now - self._told_at < (0.0 if self._on_terminal else REPORT_EVERY_S):
            return
        self._told_at = now
        self._first = self._first or (now, done_bytes)
        line = progress_line(done_bytes, total_bytes, done_bytes - self._first[1], now - self._first[0])
        start, end = ("\r\x1b[K", "") if self._on_terminal else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr)
        sys.stderr.flush()
        self._drawn = self._on_terminal

    def close(self) -> None:
        if self._drawn:
            print(file=sys.stderr)


def progress_line(done_bytes: int, total_bytes: int, gained_bytes: int, in_s: float) -> str:
    """`gained_bytes` came in the last `in_s` seconds: what that makes a second, and how long the rest takes."""
    from exod.cli.base.paint import duration, mib

    share = f"{100 * done_bytes // total_bytes} % " if total_bytes else ""
    rate = gained_bytes / in_s if in_s > 0 else 0.0
    left = f", {duration((total_bytes - done_bytes) / rate)} left" if rate and total_bytes > done_bytes else ""
    return f"{share}{mib(done_bytes)} of {mib(total_bytes)}" + (f", {rate / 1e6:.1f} MB/s{left}" if rate else "")


def _loaded(shell: Shell) -> str | None:
    """The model that a running exod here is wished to run; None where none runs."""
    from exod.cli.base.client import NoDaemonError, SilentDaemonError
    from exod.daemon_api.shapes import StatusReport

    try:
        with shell.daemon() as daemon:
            return daemon.ask("status", StatusReport).engine.model
    except (NoDaemonError, SilentDaemonError):
        return None


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(f"{question} add --yes where nobody can be asked")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _plain(model: CachedModel, loaded: str | None) -> dict[str, Any]:
    return {
        "name": model.name,
        "folder": str(model.folder) if model.folder else None,
        "size_bytes": model.size_bytes,
        "partial_bytes": model.partial_bytes,
        "whole": model.folder is not None,
        "in_use": model.name == loaded,
        "text": model.text,
    }


def _refused(error: ModelFolderError) -> RequestError:
    """As any other error of a command."""
    code = (
        ExitCode.USAGE if error.code in ("no_such_model", "no_folder", "incomplete", "busy") else ExitCode.DEGRADED
    )
    return RequestError(error.code, str(error), code)
