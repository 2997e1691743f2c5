"""A worker that waits to become one: everything is imported, nothing is loaded.

Its standard input is a socket of its daemon. A thread reads it from the beginning, so that the process ends at once
where its daemon is gone, in the midst of its imports too. The main thread sleeps until the word comes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import threading
from typing import Final

from exoengine.protocol import SPARE_GO, SPARE_READY

NEEDED: Final = (
    "exoengine.generate.loop",
    "exoengine.model.loading",
    "exoengine.model.text_thread",
    "exoengine.process.control_thread",
    "exoengine.ring.group",
    "exoengine.ring.rendezvous",
    "mlx_lm.models.llama",
    "mlx_patches.switch",
    "transformers.image_utils",
    "transformers.video_utils",
)
"""What a rank imports by the time it holds its layers, most of it through these."""


class Spare:
    """Made before MLX is imported."""

    def __init__(self) -> None:
        self._daemon = socket.socket(fileno=os.dup(0))
        self._word = threading.Event()
        threading.Thread(target=self._listen, name="spare", daemon=True).start()

    def _listen(self) -> None:
        try:
            word = self._daemon.recv(len(SPARE_GO))
        except OSError:
            word = b""
        if word != SPARE_GO:
            os._exit(0)
        self._word.set()

    def wait(self) -> None:
        """Imports what is left, and sleeps until it is wanted."""
        for name in NEEDED:
            with contextlib.suppress(ImportError):  # a part that this version does not have is found out later
                importlib.import_module(name)
        with contextlib.suppress(OSError):
            self._daemon.send(SPARE_READY)
        self._word.wait()
        self._daemon.close()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
