"""The nodes of a lab that belong together: started, watched and healed as one.

Decides how long a test waits and what it is told when it waited in vain. Never decides whether the cluster behaves
well: that is each test's own predicate.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from tests.lab.node import Node, new_cluster_key
from tests.lab.reading import Status, agreed_on, can_serve, summary
from tests.lab.topology import Lab

POLL_EVERY_S = 0.1
# Back to normal after a fault. The hold-up before a better path is taken doubles with each relapse.
HEALS_WITHIN_S = 90.0


class Cluster:
    """Nodes with one key. `config` is added to each node's own; hosts are counted from 1."""

    def __init__(
        self,
        lab: Lab,
        hosts: Iterable[int] | None = None,
        *,
        key: str | None = None,
        config: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.lab = lab
        self.key = key or new_cluster_key()
        chosen = lab.hosts if hosts is None else [lab.host(number) for number in hosts]
        self.nodes = [Node(host, lab.folder, self.key, config) for host in chosen]
        self.started_at = 0.0  # when `start` last had a daemon to start, on the monotonic clock

    def node(self, number: int) -> Node:
        """The node in host `number`."""
        return next(node for node in self.nodes if node.host.number == number)

    def start(self) -> None:
        """Starts every node that does not run."""
        ended = [node for node in self.nodes if not node.running]
        if ended:
            self.started_at = time.monotonic()
        for node in ended:
            node.start()

    def kill9(self) -> None:
        for node in self.nodes:
            node.kill9()

    def statuses(self) -> list[Status] | None:
        """The status of every node; None while one of them does not answer."""
        found = [node.poll_status() for node in self.nodes]
        return None if None in found else found  # type: ignore[return-value]

    def wait_until(self, predicate: Callable[[list[Status]], object], deadline_s: float, what: str) -> list[Status]:
        """Waits for all statuses to satisfy `predicate`, and returns them.

        Fails at once where a daemon that was started has ended, and past the deadline, each time with the
        last statuses and the tails of all logs.
        """
        end = time.monotonic() + deadline_s
        while True:
            statuses = self.statuses()
            if statuses is not None and predicate(statuses):
                return statuses
            if ended := [node.name for node in self.nodes if not node.running]:
                raise AssertionError(f"waiting for {what}: {', '.join(ended)} ended\n{self.report()}")
            if time.monotonic() > end:
                raise AssertionError(f"not within {deadline_s:g} s: {what}\n{self.report()}")
            time.sleep(POLL_EVERY_S)

    def wait_agreed(self, kind: str, deadline_s: float = HEALS_WITHIN_S) -> list[Status]:
        """Waits until all ends of all pairs, and the plan, are on paths of that kind."""
        return self.wait_until(lambda found: agreed_on(found, kind), deadline_s, f"all agree on {kind}")

    def wait_ready(self, kind: str, deadline_s: float = HEALS_WITHIN_S) -> list[Status]:
        """As `wait_agreed`, with the model loaded on all nodes."""
        return self.wait_until(
            lambda found: agreed_on(found, kind) and all(can_serve(status) for status in found),
            deadline_s,
            f"all agree on {kind} and can serve",
        )

    def heal(self) -> None:
        """Ends all faults and starts or thaws what was killed or stopped. Waits for nothing: a test does."""
        self.lab.restore()
        for node in self.nodes:
            if node.running:
                node.thaw()
        self.start()

    def report(self) -> str:
        """What a person needs to see after a failure."""
        parts = []
        for node in self.nodes:
            status = node.poll_status()
            code = None if node.process is None else node.process.poll()
            parts.append(f"--- {node.name}: " + ("running" if node.running else f"ended, exit code {code}"))
            parts.append("no status" if status is None else f"{summary(status)}\n{json.dumps(status)}")
        return "\n".join([*parts, *(node.log_tail() for node in self.nodes)])
