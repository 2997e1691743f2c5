"""The native group's module in a worker: loaded where it is ready, else built beside the work for a later group.

Decides: what a worker does where the module is not ready. What was never tried on this machine is built once, in a
thread that only waits for children (build.py); what failed is left to people, who are told the cure. Imports MLX
only with the module itself.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from exoengine.native.build import Status, build, status
from exoengine.native.self_test import load_module


class NativeModule:
    """Of one process: an extension module can be loaded into it once."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._loaded: Any = None
        self._status = status(cache)
        self._building: threading.Thread | None = None

    def begin(self) -> None:
        """Starts the build where none was tried yet."""
        if self._status.is_untried:
            self._building = threading.Thread(target=self._build, name="native build", daemon=True)
            self._building.start()

    def get(self) -> Any:
        """The module; None where it cannot be used now. Belongs to the MLX thread."""
        if self._loaded is None and self._status.is_ready:
            try:
                self._loaded = load_module(Path(self._status.file))
            except (ImportError, OSError) as error:
                self._status = Status(reason=f"it cannot be loaded: {error}", cure=self._status.cure)
        return self._loaded

    @property
    def why_not(self) -> str:
        """In words, with the cure; empty where `get` gives it."""
        found = self._status
        if found.is_ready:
            return ""
        if self._building is not None and self._building.is_alive():
            return "the native group is being built; the next ring will use it"
        return f"the native group is not ready: {found.reason} ({found.cure})"

    def _build(self) -> None:
        self._status = build(self._cache)
