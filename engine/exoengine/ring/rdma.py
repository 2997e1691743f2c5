"""A group over RDMA: MLX's own JACCL, or in tests the native group that behaves as JACCL does.

Such a group cannot be aborted. Where a rank of it dies, every other one waits in MLX for ever, and only the end of
its process ends that: its daemon sees to it. MLX gives a process one group of this kind and no second, so `Session`
keeps it. It can be used again by the next group of ranks if all of them left it at the same step's end.

Decides whether this process can be in such a group. Raises RdmaError where one cannot be formed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import mlx.core as mx

from exoengine.protocol import RDMA_STAND_IN, RdmaSetup
from exoengine.ring import rdma_stand_in
from exoengine.ring.ring_plan import RdmaError

PORTS_WITHIN_S: Final = 5.0
"""`ibv_devinfo` answers in milliseconds."""

NO_JACCL: Final = (
    "MLX says that JACCL is not available: it needs Thunderbolt 5, macOS 26.2 or later, and `rdma_ctl enable`, "
    "entered in Recovery"
)


def why_not() -> str:
    """Why this process can be in no group over RDMA, in words; empty where it can."""
    return "" if is_stand_in() or mx.distributed.is_available("jaccl") else NO_JACCL


def is_stand_in() -> bool:
    return os.environ.get(RDMA_STAND_IN) == "1"


@dataclasses.dataclass(frozen=True)
class Session:
    """The one group over RDMA that this process joined. `name` is that of the attempt which it was made for."""

    name: str
    setup: RdmaSetup
    rank: int
    handle: Any


class RdmaControl:
    """What the native group's control is to a native group. JACCL has no abort and measures nothing, and a fault in
    it is an error of MLX's or a wait without an end: there is nothing to do and nothing to tell.
    """

    failed = 0
    reason = ""
    waited_ns = 0

    def abort(self) -> None: ...

    def allow(self, seconds: float) -> None: ...


def join(setup: RdmaSetup, rank: int, native: Any) -> Any:
    """A group of all ranks, once they have all called this. It may wait for ever for one that does not; it holds
    the interpreter lock meanwhile. `native` is the native group's module, for the stand-in. Raises RdmaError.
    """
    if setup.stand_in:
        if not is_stand_in():
            raise RdmaError("another node asks for a stand-in of RDMA: debug.rdma_stand_in is not set here")
        handle = rdma_stand_in.join(setup, rank, native)
    else:
        handle = _jaccl(setup, rank)
    ones = mx.distributed.all_sum(mx.ones((1,)), group=handle)
    if ones.item() != len(setup.devices):
        raise RdmaError(f"a sum of ones over {len(setup.devices)} ranks gave {ones.item()}")
    return handle


def _jaccl(setup: RdmaSetup, rank: int) -> Any:
    """JACCL reads a file and the environment. Its message names the rank's device where that does not work."""
    devices = [[_one_or_more(to) for to in row] for row in setup.devices]
    with tempfile.TemporaryDirectory(prefix="exod-rdma-") as folder:
        matrix = Path(folder) / "devices.json"
        matrix.write_text(json.dumps(devices))
        os.environ |= {
            "MLX_RANK": str(rank), "MLX_IBV_DEVICES": str(matrix), "MLX_JACCL_COORDINATOR": setup.coordinator
        }  # fmt: skip
        try:
            return mx.distributed.init(strict=True, backend="jaccl")
        except (RuntimeError, ValueError) as error:
            raise RdmaError(str(error).strip().partition("\n")[0] or type(error).__name__) from None


def _one_or_more(devices: tuple[str, ...]) -> str | list[str] | None:
    return None if not devices else devices[0] if len(devices) == 1 else list(devices)


def inactive_ports(setup: RdmaSetup, rank: int) -> str:
    """Which of this rank's devices have no active port, in words; empty where all have, or nothing tells."""
    tool = shutil.which("ibv_devinfo")
    if setup.stand_in or tool is None:
        return ""
    try:
        ran = subprocess.run([tool], capture_output=True, text=True, timeout=PORTS_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    states = port_states(ran.stdout)
    wanted = {device for to in setup.devices[rank] for device in to}
    bad = [f"{device} is {states.get(device, 'not listed')}" for device in sorted(wanted)]
    bad = [text for text in bad if not text.endswith("PORT_ACTIVE")]
    return f"ibv_devinfo: {', '.join(bad)}; is the cable plugged in at both ends?" if bad else ""


def port_states(text: str) -> dict[str, str]:
    """By device, what `ibv_devinfo` says of its port."""
    states: dict[str, str] = {}
    device = ""
    for line in text.splitlines():
        if found := re.match(r"\s*hca_id:\s*(\S+)", line):
            device = found[1]
        elif device and (found := re.match(r"\s*state:\s*(\w+)", line)):
            states[device] = found[1]
    return states
