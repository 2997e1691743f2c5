"""Faults that a node can do to itself without rights: for tests, where the config says `[debug] enabled = true`.

Its rank is killed or stopped, the daemon may open nothing more, or it hears nobody. Decides how each is made and
taken back; never when. What needs a packet filter, a disk or another host is in `tests/lab/fault_kinds.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Callable

from exod.daemon_api.self_fault import SelfFault
from exod.errors import RequestError


class SelfFaults:
    """`rank_pid`: of this node's own rank, 0 where there is none. `deafen`: drops all datagrams for so long."""

    def __init__(self, rank_pid: Callable[[], int], deafen: Callable[[float], None]) -> None:
        self._rank_pid, self._deafen = rank_pid, deafen

    def begin(self, kind: SelfFault, for_s: float) -> str:
        """What happens, for people. RequestError where it cannot be done."""
        match kind:
            case "kill-rank":
                pid = self._rank()
                _signal(pid, signal.SIGKILL)
                return f"the rank, process {pid}, is killed"
            case "stop-rank":
                pid = self._rank()
                _signal(pid, signal.SIGSTOP)
                asyncio.get_running_loop().call_later(for_s, _signal, pid, signal.SIGCONT)
                return f"the rank, process {pid}, is stopped for {for_s:g} s, unless exod continues it sooner"
            case "no-descriptors":
                return f"exod may hold {_hold_descriptors(for_s)} descriptors, as many as now, for {for_s:g} s"
            case "deaf":
                self._deafen(for_s)
                return f"all datagrams of all paths are lost for {for_s:g} s, as this node sees it"

    def _rank(self) -> int:
        pid = self._rank_pid()
        if not pid:
            raise RequestError("no_rank", "this node hosts no rank now: exoctl engine status shows who does")
        return pid


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended since its status was made
        os.kill(pid, number)


def _hold_descriptors(for_s: float) -> int:
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(os.listdir("/dev/fd")) - 1  # less the one that lists them
    resource.setrlimit(resource.RLIMIT_NOFILE, (held, usual[1]))
    asyncio.get_running_loop().call_later(for_s, resource.setrlimit, resource.RLIMIT_NOFILE, usual)
    return held
