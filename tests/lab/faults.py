"""The faults of the chaos: lanes of them, each drawn from a seed, that overlap.

One lane breaks links, one processes, and one what `fault_kinds.py` has: the ring alone, addresses, hosts. Within a
lane a fault ends before the next begins; between the lanes
nothing is agreed. Decides what is broken when; never what is right.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.lab import filters
from tests.lab.cluster import Cluster
from tests.lab.fault_kinds import HOST_KINDS, LINK_KINDS, RING_KINDS, Breaks, forget_state
from tests.lab.leaks import is_command_of_lab, processes_of
from tests.lab.node import Node, wait_for
from tests.lab.reading import link_to

LINK_PAUSE_S = (0.2, 4.0)
HOST_PAUSE_S = (1.0, 6.0)
PROCESS_PAUSE_S = (0.5, 9.0)
"""A killed rank takes seconds to be replaced: most of the time something works, and never for long."""
FLAPS = 4
STARTS_WITHIN_S = 30.0
CONFIG: dict[str, dict[str, Any]] = {"debug": {"enabled": True}}
"""What the nodes need for a planned move on demand."""
PROMPT_CACHE = "16MiB"
"""What finished answers leave would grow with their number, to a quarter of memory, and hide what a fault leaks."""


class Tally:
    """What both lanes have done, and whether they go on."""

    def __init__(self, limit: int, deadline: float) -> None:
        self._limit, self._deadline = limit, deadline
        self._lock = threading.Lock()
        self.lives = threading.Lock()
        """Held while a daemon is ended and started: a lane must not end the process that another one starts."""
        self.began: Counter[str] = Counter()
        self.active: list[str] = []
        self.log: list[tuple[float, str]] = []
        """(seconds on the monotonic clock, what began or ended), in order."""
        self.ended: set[subprocess.Popen[Any]] = set()
        """Daemons that were ended on purpose: a client of theirs may see its stream closed."""
        self.failed: list[str] = []

    @property
    def count(self) -> int:
        return sum(self.began.values())

    def begin(self, kind: str) -> bool:
        """Whether there is room for one more fault; it is counted."""
        with self._lock:
            if self.failed or self.count >= self._limit or time.monotonic() >= self._deadline:
                return False
            self.began[kind] += 1
            self.active.append(kind)
        return True

    def close(self) -> None:
        """No fault begins from now on."""
        self._limit = 0

    def end(self, kind: str) -> None:
        with self._lock:
            self.active.remove(kind)

    def note(self, what: str) -> None:
        self.log.append((time.monotonic(), what))

    def since(self, moment: float) -> list[str]:
        """What was noted from `moment` on, each with its distance in seconds."""
        return [f"{at - moment:+.1f} s {what}" for at, what in list(self.log) if at >= moment]


class Lane(threading.Thread):
    """Breaks one thing after another; `kinds` names them."""

    pause_s: tuple[float, float]

    def __init__(self, cluster: Cluster, tally: Tally, seed: int) -> None:
        super().__init__(name=type(self).__name__, daemon=True)
        self.cluster, self.tally, self.random = cluster, tally, random.Random(seed)
        self.kinds: dict[str, Callable[[], str]] = {}
        """Each breaks and mends, and returns what it did to whom."""

    def run(self) -> None:
        try:
            while self.tally.begin(kind := self.random.choice(list(self.kinds))):
                self.tally.note(f"{kind} begins")
                self.tally.note(f"{kind} ended: {self.kinds[kind]()}")
                self.tally.end(kind)
                time.sleep(self.random.uniform(*self.pause_s))
        except Exception as error:  # the run must end, and say so
            self.tally.failed.append(f"{self.name}: {type(error).__name__}: {error}")

    def lasts(self, least_s: float, most_s: float) -> float:
        """Sleeps for a while between the two, and returns how long."""
        chosen = self.random.uniform(least_s, most_s)
        time.sleep(chosen)
        return chosen

    def node(self) -> Node:
        return self.random.choice(self.cluster.nodes)

    def _alone(self, fault: Callable[[], str]) -> str:
        """For a fault that ends a daemon, or stops it."""
        with self.tally.lives:
            return fault()


class LinkFaults(Lane):
    pause_s = LINK_PAUSE_S

    def __init__(self, cluster: Cluster, tally: Tally, seed: int) -> None:
        super().__init__(cluster, tally, seed)
        self._cable = cluster.lab.link("bridge0")
        self.kinds = {
            "cut cable": lambda: self._set(cut=True),
            "slow cable": lambda: self._set(delay_ms=20),
            "lossy cable": lambda: self._set(loss=0.3),
            "cable cut one way": lambda: self._set(cut=True, source=self.random.choice((1, 2))),
            "unplugged cable": self._unplug,
            "flapping cable": self._flap,
            "all links cut": self._cut_all,
            "planned move": self._move,
        }

    def _set(self, **fault: Any) -> str:
        self._cable.set(**fault)
        lasted = self.lasts(0.1, 3.0)
        self._cable.restore()
        return f"{lasted:.1f} s {fault}"

    def _unplug(self) -> str:
        self._cable.unplug()
        lasted = self.lasts(0.1, 3.0)
        self._cable.plug()
        return f"{lasted:.1f} s"

    def _flap(self) -> str:
        for _ in range(FLAPS):
            self._cable.cut()
            self.lasts(0.05, 0.5)
            self._cable.restore()
            self.lasts(0.05, 0.5)
        return f"{FLAPS} times"

    def _cut_all(self) -> str:
        for link in self.cluster.lab.links.values():
            link.cut()
        lasted = self.lasts(0.5, 4.0)
        self.cluster.lab.restore()
        return f"{lasted:.1f} s"

    def _move(self) -> str:
        """To the Ethernet and back, though the cable is well: nothing is aborted."""
        node = self.node()
        status = node.poll_status()
        link = link_to(status, self._other(node).name) if status else None
        path = next((path["id"] for path in link["paths"] if path["kind"] == "ethernet"), None) if link else None
        if path is None:
            return f"{node.name} knows no other path now"
        done = node.exoctl("debug", "pin", path, "--for", "2s")
        lasted = self.lasts(1.0, 3.0)
        return f"{node.name}, {lasted:.1f} s, exit code {done.returncode}"

    def _other(self, node: Node) -> Node:
        return next(one for one in self.cluster.nodes if one is not node)


class ProcessFaults(Lane):
    pause_s = PROCESS_PAUSE_S

    def __init__(self, cluster: Cluster, tally: Tally, seed: int) -> None:
        super().__init__(cluster, tally, seed)
        self.kinds = {
            "killed rank": lambda: self._ranks([self.node()], signal.SIGKILL),
            "both ranks killed": lambda: self._ranks(self.cluster.nodes, signal.SIGKILL),
            "stopped rank": lambda: self._ranks([self.node()], signal.SIGSTOP),  # nobody wakes it
            "killed daemon": lambda: self._alone(self._kill_daemon),
            "killed daemon and rank": lambda: self._alone(self._kill_host),
            "stopped daemon": lambda: self._alone(self._stop_daemon),
            "daemon leaves": lambda: self._alone(self._leave),
        }

    def _ranks(self, nodes: list[Node], number: signal.Signals) -> str:
        hit = [(node.name, pid) for node in nodes for pid, name in processes_of(node) if name == "rank"]
        for _, pid in hit:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return f"{hit}"

    def _ends(self, node: Node) -> None:
        assert node.process is not None
        self.tally.ended.add(node.process)  # before it happens: its clients see it at once

    def _kill_daemon(self) -> str:
        node = self.node()
        self._ends(node)
        node.kill9()
        lasted = self.lasts(0.0, 1.0)
        node.start()
        return f"{node.name}, started again after {lasted:.1f} s"

    def _kill_host(self) -> str:
        """As a power cut would, with the power soon back."""
        node = self.node()
        self._ends(node)
        node.kill9()
        self._ranks([node], signal.SIGKILL)
        lasted = self.lasts(0.0, 3.0)
        node.start()
        return f"{node.name}, started again after {lasted:.1f} s"

    def _stop_daemon(self) -> str:
        node = self.node()
        node.freeze()
        lasted = self.lasts(0.2, 2.5)
        node.thaw()
        return f"{node.name}, {lasted:.1f} s"

    def _leave(self) -> str:
        node = self.node()
        wait_for(node.poll_status, STARTS_WITHIN_S, f"{node.name} answers, and so hears a SIGTERM")
        self._ends(node)
        began = time.monotonic()
        code = node.terminate()
        took_s = time.monotonic() - began
        if code != 0:
            self.tally.failed.append(f"{node.name} left with exit code {code}")
        if left := [one for one in processes_of(node) if not is_command_of_lab(one[1])]:
            self.tally.failed.append(f"{node.name} left {left} behind when it left")
        lasted = self.lasts(0.0, 2.0)
        node.start()
        return f"{node.name} took {took_s:.1f} s, started again after {lasted:.1f} s"


class HostFaults(Lane):
    """What `fault_kinds.py` has; what needs a packet filter only where there is one."""

    pause_s = HOST_PAUSE_S

    def __init__(self, cluster: Cluster, tally: Tally, seed: int) -> None:
        super().__init__(cluster, tally, seed)
        filtered = {**RING_KINDS, "two members deaf": LINK_KINDS["two members deaf"]} if filters.AVAILABLE else {}
        unfiltered = {kind: breaks for kind, breaks in LINK_KINDS.items() if kind != "two members deaf"}
        kinds = {**filtered, **unfiltered, **HOST_KINDS}
        self.kinds = {kind: functools.partial(self._while, breaks) for kind, breaks in kinds.items()}
        self.kinds["daemon without its state"] = lambda: self._alone(self._lose_state)

    def _while(self, breaks: Breaks) -> str:
        with breaks(self.cluster, self.random) as whom:
            lasted = self.lasts(0.5, 5.0)
        return f"{whom}, {lasted:.1f} s"

    def _lose_state(self) -> str:
        """Its host lost its power and its disk: it is back within a second, as a node that nobody knows."""
        node = self.node()
        assert node.process is not None
        self.tally.ended.add(node.process)
        node.kill9()
        for pid, _ in processes_of(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        forget_state(node)
        lasted = self.lasts(0.0, 1.0)
        node.start()
        return f"{node.name}, started again after {lasted:.1f} s"
