"""This node's copy of what people asked of the cluster by command: kept on disk, and taken from a peer's newer one.

Decides which copy is kept; never what follows from it (core/base/cluster_wish.py). A drain is not taken up again
from the disk: a cluster that was switched off and on again serves.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from exod import data_files
from exod.config.settings import Config
from exod.core.base.cluster_wish import newest
from exod.model import ClusterWish

log = structlog.get_logger()

FILE: Final = "wish.json"


def kept_wish(config: Config, config_model: str, on_change: Callable[[ClusterWish], None]) -> SharedWish:
    """`config_model` is what the configuration names, as this node's card shows it."""
    written_at = 0.0
    if config.source is not None:
        with contextlib.suppress(OSError):
            written_at = config.source.stat().st_mtime
    return SharedWish(config.node.data_dir, config.node.name, config_model, written_at, on_change)


class SharedWish:
    """`on_change` takes the newest wish. `config_model` is what the configuration names (empty: nothing), and
    `config_at` when it was written (Unix seconds): a configuration that is newer than the last command is a wish.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config_model: str,
        config_at: float,
        on_change: Callable[[ClusterWish], None],
    ) -> None:
        self._file, self._name, self._on_change = folder / FILE, name, on_change
        self.current = self._read()
        before = self.current
        if before is not None and config_model and config_at > before.at and config_model != before.model:
            self.current = ClusterWish(config_at, f"the configuration of {name}", config_model)

    def _read(self) -> ClusterWish | None:
        try:
            found = data_files.read(self._file, ClusterWish)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("wish_unread", file=str(self._file), error=error.strerror)
            return None
        return None if isinstance(found, data_files.Damaged) else msgspec.structs.replace(found, draining=False)

    def ask_model(self, model: str) -> None:
        """By command: load it, or unload (empty). Ends a drain."""
        self._take(ClusterWish(self._next_at(), self._name, model))

    def ask_drain(self) -> None:
        model = None if self.current is None else self.current.model
        self._take(ClusterWish(self._next_at(), self._name, model, draining=True))

    def heard(self, wish: ClusterWish | None) -> None:
        """A peer's copy."""
        if wish is not None and newest(self.current, wish) != self.current:
            self._take(wish)

    def _next_at(self) -> float:
        """Later than what is known, whatever this host's clock says."""
        return max(time.time(), 0.0 if self.current is None else self.current.at + 0.001)

    def _take(self, wish: ClusterWish) -> None:
        self.current = wish
        try:
            self._write(wish)
        except OSError as error:  # a full disk: the others remember it, too
            log.warning("wish_not_kept", file=str(self._file), error=error.strerror)
        self._on_change(wish)

    def write_again(self) -> None:
        """Where the file was removed. Raises OSError."""
        if self.current is not None and not self._file.exists():
            self._write(self.current)

    def _write(self, wish: ClusterWish) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(wish))
        os.replace(fresh, self._file)
