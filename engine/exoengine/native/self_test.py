"""The proof that a built module works with this MLX, run in a process of its own: `… MODULE_FILE`.

Two ranks on two streams of one process form a group, sum, are aborted in mid-operation, and form another one. Says
nothing where all is well; else one line on standard error, and exit code 1. A module that does not fit may also end
the process, which is why it is not the worker's.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import mlx.core as mx

from exoengine.native.recipe import MODULE

DEADLINE_S: Final = 10.0
"""A sum in one process takes microseconds."""

ABORT_AFTER_S: Final = 0.05
"""By then the receive that is to be aborted waits."""


def load_module(file: Path) -> ModuleType:
    """Raises ImportError."""
    spec = importlib.util.spec_from_file_location(MODULE, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pair(module: Any) -> list[tuple[Any, Any]]:
    ends = socket.socketpair()
    try:
        return [
            module.make(rank, 2, {1 - rank: [ends[rank].fileno()]}, spin_us=0, deadline_s=DEADLINE_S)
            for rank in (0, 1)
        ]
    finally:
        for end in ends:
            end.close()


def _sum(pair: list[tuple[Any, Any]], streams: list[Any]) -> None:
    values = [mx.array([1.5, -2.0]), mx.array([0.25, 8.0])]
    sums = [
        mx.distributed.all_sum(value, group=group, stream=stream)
        for value, (group, _), stream in zip(values, pair, streams, strict=True)
    ]
    mx.eval(sums)
    if any(control.failed for _, control in pair):
        raise RuntimeError(f"a sum failed: {[control.reason for _, control in pair]}")
    if any(each.tolist() != [1.75, 6.0] for each in sums):
        raise RuntimeError(f"a sum is wrong: {[each.tolist() for each in sums]}")


def run(file: Path) -> None:
    """Raises ImportError, RuntimeError or TypeError where the module does not work."""
    module: Any = load_module(file)
    streams = [mx.new_stream(mx.cpu) for _ in range(2)]
    pair = _pair(module)
    _sum(pair, streams)
    group, control = pair[0]
    threading.Timer(ABORT_AFTER_S, control.abort).start()
    received = mx.distributed.recv((3,), mx.float32, 1, group=group, stream=streams[0])
    mx.eval(received)
    if received.tolist() != [0, 0, 0] or control.failed != 1:
        raise RuntimeError("an aborted receive was not counted")
    _sum(_pair(module), streams)


def mlx_internals() -> int:
    """The version of nanobind's inner structures in the MLX that runs; 0 where it cannot be told."""
    import ctypes
    import re

    api = ctypes.pythonapi
    api.PyInterpreterState_Get.restype = ctypes.c_void_p
    api.PyInterpreterState_GetDict.restype = ctypes.py_object
    api.PyInterpreterState_GetDict.argtypes = [ctypes.c_void_p]
    for key in api.PyInterpreterState_GetDict(api.PyInterpreterState_Get()):
        found = re.search(r"^__nb_internals_.*_v(\d+)(?:_stable)?_mlx__$", str(key))
        if found:
            return int(found[1])
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--internals"]:
        print(mlx_internals())
        sys.exit(0)
    try:
        run(Path(sys.argv[1]))
    except (ImportError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        sys.exit(str(error).strip().partition("\n")[0] or type(error).__name__)
