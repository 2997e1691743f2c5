"""Random faults over running streams: every answer must be the one that would have come without them.

`python -m tests.lab.chaos --minutes 10 --seed 1` (= `make chaos`). Two hosts, a client on each that counts without
a pause, and one fault after another, drawn from a seed. Afterwards everything that could leak is counted:
processes, descriptors, memory. Decides what is broken when; never what is right: that is the numbers themselves.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.chat import count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.reading import can_serve
from tests.lab.topology import Lab

CLIENTS = 2
"""One on each node: requests queue for each other, so more would only wait longer."""
LONGEST_COUNT = 300
SERVES_WITHIN_S = 60.0
ANSWER_WITHIN_S = 240.0
"""An answer may meet several faults, and wait for another client's answer that meets some too."""
PAUSE_S = (0.5, 3.0)
"""Between two faults: some come while the last is still being answered."""
KILL_SHOWS_S = 1.0
"""A client sees its stream end before the one who killed the daemon has noted it."""
GROWTH_MIB = 40
"""Memory that a daemon or a rank may gain in a run: caches fill, but each fault must not cost anything."""
GROWTH_DESCRIPTORS = 16


@dataclass
class Story:
    """What happened, for the report."""

    faults: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    largest_gap_s: float = 0.0
    report: str = ""
    """Statuses and log tails, where something went wrong."""

    def lines(self) -> list[str]:
        return [
            f"{sum(self.faults.values())} faults: {dict(sorted(self.faults.items()))}",
            f"{self.answers} answers, all whole"
            if not self.wrong
            else f"{len(self.wrong)} WRONG of {self.answers}",
            f"{self.refused} streams ended because their own node's daemon was killed",
            f"largest gap between two tokens: {self.largest_gap_s:.2f} s",
            *self.wrong,
        ]


class Client(threading.Thread):
    """Counts on one node, answer after answer, until told to stop."""

    def __init__(self, node: Node, seed: int, story: Story, lock: threading.Lock) -> None:
        super().__init__(name=f"client of {node.name}", daemon=True)
        self._node, self._random, self._story, self._lock = node, random.Random(seed), story, lock
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            life = self._node.process
            if self._node.poll_status() is None:
                time.sleep(0.1)  # between a kill and the next life
                continue
            first = self._random.randint(1, 600)
            last = first + self._random.randint(20, LONGEST_COUNT)
            stream = self._node.stream_chat(count_prompt(first, last))
            expected = list(range(first, last + 1))
            try:
                answer = numbers(stream.result(ANSWER_WITHIN_S))
            except AssertionError as error:
                self._broken(stream.numbers, expected, life, str(error))
                continue
            with self._lock:
                self._story.answers += 1
                self._story.largest_gap_s = max(self._story.largest_gap_s, *stream.gaps_s(), 0.0)
                if answer != expected:
                    self._story.wrong.append(f"count from {first} to {last} gave {answer}")

    def _broken(self, got: list[int], expected: list[int], life: object, error: str) -> None:
        """A stream may only break when its own daemon was killed, and what came before must be right."""
        time.sleep(KILL_SHOWS_S)
        prefix = got[:-1] if got else []  # the last number may have been cut in the middle of its digits
        with self._lock:
            if self._node.process is life and self._node.running:
                self._story.wrong.append(f"{self._node.name}: {error}")
            elif prefix != expected[: len(prefix)]:
                self._story.wrong.append(f"{self._node.name} gave {got} before its daemon was killed")
            else:
                self._story.refused += 1


class Chaos:
    """Draws faults from a seed and undoes each before the next of its kind."""

    def __init__(self, cluster: Cluster, seed: int, story: Story) -> None:
        self._cluster, self._random, self._story = cluster, random.Random(seed), story
        self._faults: dict[str, Callable[[], None]] = {
            "cut cable": lambda: self._cable(cut=True),
            "slow cable": lambda: self._cable(delay_ms=20),
            "lossy cable": lambda: self._cable(loss=0.3),
            "one way": lambda: self._cable(cut=True, source=self._random.choice((1, 2))),
            "cut both": self._cut_both,
            "kill rank": lambda: self._rank(signal.SIGKILL),
            "stop rank": self._stop_rank,
            "kill daemon": self._kill_daemon,
            "stop daemon": self._stop_daemon,
        }

    def run(self, deadline: float, limit: int) -> None:
        while time.monotonic() < deadline and sum(self._story.faults.values()) < limit:
            name = self._random.choice(list(self._faults))
            self._story.faults[name] += 1
            self._faults[name]()
            time.sleep(self._random.uniform(*PAUSE_S))

    def _node(self) -> Node:
        return self._random.choice(self._cluster.nodes)

    def _cable(self, **fault: object) -> None:
        cable = self._cluster.lab.link("bridge0")
        cable.set(**fault)  # type: ignore[arg-type]
        time.sleep(self._random.uniform(0.1, 3.0))
        cable.restore()

    def _cut_both(self) -> None:
        self._cluster.lab.link("bridge0").cut()
        self._cluster.lab.link("en0").cut()
        time.sleep(self._random.uniform(0.5, 4.0))
        self._cluster.lab.restore()

    def _rank(self, number: signal.Signals) -> None:
        node = self._node()
        if node.running and node.poll_status() is not None:
            node.kill_workers(number)

    def _stop_rank(self) -> None:
        """Nobody wakes it: the daemon has to notice."""
        self._rank(signal.SIGSTOP)

    def _kill_daemon(self) -> None:
        node = self._node()
        node.kill9()
        time.sleep(self._random.uniform(0.0, 1.0))
        node.start()

    def _stop_daemon(self) -> None:
        node = self._node()
        node.freeze()
        time.sleep(self._random.uniform(0.2, 2.5))
        node.thaw()


def weigh(node: Node) -> tuple[int, int, int]:
    """(processes in the host, descriptors, resident MiB) of this node's exod and rank."""
    descriptors = resident = 0
    pids = node.host.processes()
    for pid in pids:
        try:
            descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
            resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 // 1024
        except OSError:
            continue  # it ended meanwhile
    return len(pids), descriptors, resident


def leaks(before: dict[str, tuple[int, int, int]], after: dict[str, tuple[int, int, int]]) -> list[str]:
    """What grew, in words."""
    found = []
    for name, (processes, descriptors, resident) in after.items():
        was = before[name]
        if processes > was[0]:
            found.append(f"{name}: {processes} processes, {was[0]} before")
        if descriptors > was[1] + GROWTH_DESCRIPTORS:
            found.append(f"{name}: {descriptors} descriptors, {was[1]} before")
        if resident > was[2] + GROWTH_MIB:
            found.append(f"{name}: {resident} MiB, {was[2]} before")
    return found


def run(seed: int, minutes: float, faults: int) -> Story:
    """One run; the story's `wrong` is empty where all is well."""
    story, lock = Story(), threading.Lock()
    with Lab(2) as lab:
        cluster = Cluster(lab, (1, 2))
        cluster.start()
        serves = lambda found: all(can_serve(status) for status in found)  # noqa: E731 - a predicate in a word
        cluster.wait_until(serves, SERVES_WITHIN_S, "all can serve")
        for node in cluster.nodes:
            node.chat(count_prompt(1, LONGEST_COUNT))  # caches and imports are warm before anything is weighed
        before = {node.name: weigh(node) for node in cluster.nodes}
        clients = [Client(cluster.nodes[place % 2], seed + place, story, lock) for place in range(CLIENTS)]
        for client in clients:
            client.start()
        Chaos(cluster, seed, story).run(time.monotonic() + minutes * 60, faults)
        for client in clients:
            client.stopping = True
        cluster.heal()
        for client in clients:
            client.join(ANSWER_WITHIN_S)
            if client.is_alive():
                story.wrong.append(f"{client.name} never ended")
        cluster.wait_until(serves, SERVES_WITHIN_S, "all can serve after the faults")
        story.wrong += leaks(before, {node.name: weigh(node) for node in cluster.nodes})
        if story.wrong:
            story.report = cluster.report()
        for node in cluster.nodes:
            node.terminate()
            if left := node.host.processes():
                story.wrong.append(f"{node.name}: processes {left} were left behind")
    return story


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.lab.chaos")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--faults", type=int, default=10_000, help="end after so many")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    story = run(arguments.seed, arguments.minutes, arguments.faults)
    print("\n".join([story.report, *story.lines()]))
    return 1 if story.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
