"""Finds the switch of a patched MLX in this process, and turns it.

The engine's worker calls `find_switch` once after it has imported MLX, and turns the switch between steps as
its policy of safe synchronisation says. This file never imports MLX, never loads a library that the process
has not loaded, and decides nothing about when to turn.
"""

import ctypes
import sys
from dataclasses import dataclass

GETTER = "mlx_force_distributed_gpu"
SETTER = "mlx_set_force_distributed_gpu"


@dataclass(frozen=True, slots=True)
class Switch:
    """`MLX_FORCE_DISTRIBUTED_GPU` of the running process. May be turned from any thread at any time.

    It counts for graphs evaluated afterwards: what was handed to the GPU before keeps its waits.
    """

    library: ctypes.CDLL

    def gpu_may_wait(self) -> bool:
        return bool(self.library[GETTER]())

    def set_gpu_may_wait(self, allowed: bool) -> None:
        """True: command buffers may wait for the network (fast). False: the host waits first (safe)."""
        self.library[SETTER](ctypes.c_int(allowed))


def find_switch(module_name: str = "mlx.core") -> Switch | None:
    """The switch, or None where MLX is not imported or was built without the patch.

    A library handle resolves symbols of the libraries that it depends on too, so the extension module leads
    to libmlx wherever that lies, linked in or beside it.
    """
    path = getattr(sys.modules.get(module_name), "__file__", None)
    if path is None:
        return None
    library = ctypes.CDLL(path)
    return Switch(library) if hasattr(library, GETTER) and hasattr(library, SETTER) else None
