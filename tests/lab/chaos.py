"""Random faults over running streams: every answer must be the one that would have come without them.

`python -m tests.lab.chaos --faults 200 --minutes 30 --seed 1` (= `make chaos`), over what `auto` takes, or over
a tensor group with `--parallel tensor`. Two hosts, two clients on each that ask without a pause, and three
lanes of faults that overlap. Beforehand and afterwards everything that could leak is counted. Exit code 0 where
nothing is wrong, else 1; the report says what.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.rows import percentile
from tests.lab.clients import (
    ANSWER_WITHIN_S,
    LONG_GAP_S,
    Client,
    Story,
    a_count,
    flat_model,
    sampled_answers,
    undisturbed,
)
from tests.lab.cluster import Cluster
from tests.lab.fault_kinds import moved_clock, small_disk
from tests.lab.faults import CONFIG, PROMPT_CACHE, HostFaults, Lane, LinkFaults, ProcessFaults, Tally
from tests.lab.leaks import Life, Watch, Weight, grown, outgrown, processes_of, weigh
from tests.lab.node import Node, wait_for
from tests.lab.oracle import Verdict
from tests.lab.reading import Status, can_serve
from tests.lab.topology import Lab

LANES: tuple[type[Lane], ...] = (LinkFaults, ProcessFaults, HostFaults)
CLIENTS_A_NODE = 4
SERVES_WITHIN_S = 60.0
SETTLES_WITHIN_S = 30.0
"""From the last stream's end until both nodes hold what they held before: connections close, ranks are adopted."""
PROGRESS_EVERY_S = 10.0
NO_SPACE = "the data folder cannot be written: No space left on device"
"""A daemon that starts while its disk is full says so and ends; it is started again, as launchd does."""
LOG_KIB_A_FAULT = 16
"""What both logs of a node may grow by for each fault: a recovery is some dozen lines."""


@dataclass
class Report:
    """What happened in one run. `wrong` is empty where all is well."""

    seed: int
    faults: Tally
    story: Story = field(default_factory=Story)
    before: dict[str, Weight] = field(default_factory=dict)
    after: dict[str, Weight] = field(default_factory=dict)
    lives: list[Life] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    took_s: float = 0.0
    details: str = ""
    """Statuses and log tails, where something went wrong."""

    @property
    def wrong(self) -> list[str]:
        return [*self.story.wrong, *self.faults.failed, *self.leaks]

    def lines(self) -> list[str]:
        story, faults = self.story, self.faults
        return [
            f"chaos, seed {self.seed}: {faults.count} faults in {self.took_s:.0f} s",
            *(f"  {count:4d} {kind}" for kind, count in sorted(faults.began.items())),
            f"answers: {', '.join(f'{story.verdicts[one]} {one}' for one in Verdict)}; "
            f"{story.sampled} of the whole ones sampled; {story.begun_in_a_fault} of all began during a fault",
            f"longest wait for a next token in each: {_summed(story.gaps_s)}",
            f"wait for the first token, with the queue: {_summed(story.waits_s)}",
            *(f"  over {LONG_GAP_S:g} s: {gap}" for gap in story.long_gaps),
            *self._table(),
            *(
                f"  largest {life.role} of {life.node}: {life.resident_mib:.0f} MiB, {life.descriptors} "
                f"descriptors, lived {life.lived_s:.0f} s"
                for life in self.lives
            ),
            *(f"WRONG: {text}" for text in self.wrong),
        ]

    def _table(self) -> list[str]:
        """Before and after, per node and name."""
        lines = []
        for name, after in self.after.items():
            before = self.before[name]
            lines.append(f"{name}, before -> after")
            for process in sorted(before.processes | after.processes):
                was, now = (
                    f"{one.processes.get(process, 0)} with {one.descriptors.get(process, 0)} descriptors and "
                    f"{one.resident_mib.get(process, 0.0):.0f} MiB"
                    for one in (before, after)
                )
                lines.append(f"  {process}: {was} -> {now}")
            sockets = sorted(before.sockets | after.sockets)
            shown = (f"{one} {before.sockets.get(one, 0)} -> {after.sockets.get(one, 0)}" for one in sockets)
            lines.append(f"  sockets: {', '.join(shown)}")
            lines.append(
                f"  files {len(before.files)} -> {len(after.files)}, "
                f"logs {before.log_kib:.0f} -> {after.log_kib:.0f} KiB"
            )
        return lines


def _summed(values: Sequence[float]) -> str:
    if not values:
        return "none"
    middle, most = percentile(values, 50), percentile(values, 99)
    return f"p50 {middle:.2f} s, p99 {most:.2f} s, largest {max(values):.2f} s"


def run(
    seed: int,
    minutes: float,
    faults: int,
    keep_logs: Path | None = None,
    parallel: str = "auto",
    lanes: Sequence[type[Lane]] = LANES,
) -> Report:
    """One run. AssertionError where not even the undisturbed cluster answers."""
    with Lab(2) as lab, contextlib.ExitStack() as after:
        model = flat_model(lab.folder / "count")
        engine = {"model": str(model), "parallel": parallel, "prompt_cache": PROMPT_CACHE}
        cluster = Cluster(lab, (1, 2), config=CONFIG | {"engine": engine})
        if HostFaults in lanes:
            for node in cluster.nodes:
                moved_clock(node)
            after.enter_context(small_disk(cluster.nodes[1]))
        if keep_logs is not None:
            after.callback(_keep, cluster, keep_logs)
        return _run(cluster, seed, minutes, faults, lanes)


def _keep(cluster: Cluster, folder: Path) -> None:
    for node in cluster.nodes:
        shutil.copytree(node.folder, folder / node.name, dirs_exist_ok=True, ignore=_sockets_in)


def _sockets_in(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket()]


def _run(cluster: Cluster, seed: int, minutes: float, faults: int, kinds: Sequence[type[Lane]]) -> Report:
    cluster.start()
    cluster.wait_until(_all_serve, SERVES_WITHIN_S, "all can serve")
    sampled = sampled_answers(cluster.nodes[0], seed)
    for node in cluster.nodes:  # caches and imports are warm before anything is weighed
        for question, answer in (sampled[0], a_count(random.Random(seed))):
            assert undisturbed(node, question) == answer
    began = time.monotonic()
    report = Report(seed, tally := Tally(faults, began + minutes * 60))
    report.before = {node.name: weigh(node) for node in cluster.nodes}
    watch = Watch(cluster.nodes)
    watch.start()
    clients = [
        Client(node, sampled, seed + 10 * node.host.number + place, report.story, tally)
        for node in cluster.nodes
        for place in range(CLIENTS_A_NODE)
    ]
    lanes = [kind(cluster, tally, drawn) for kind, drawn in zip(kinds, (seed, -seed, seed + 1), strict=False)]
    for thread in (*clients, *lanes):
        thread.start()
    while any(lane.is_alive() for lane in lanes):
        for lane in lanes:
            lane.join(PROGRESS_EVERY_S / len(lanes))
        _progress(report, faults, time.monotonic() - began)
        tally.failed += [text for node in cluster.nodes if (text := _ended_by_itself(node, tally))]
    for client in clients:
        client.stopping = True
    cluster.heal()
    for client in clients:
        client.join(ANSWER_WITHIN_S)
        if client.is_alive():
            report.leaks.append(f"{client.name} never ended")
    try:
        cluster.wait_until(_all_serve, SERVES_WITHIN_S, "all can serve after the faults")
    except AssertionError as error:
        report.leaks.append(str(error).partition("\n")[0])
    watch.stop()
    report.lives = watch.largest()
    report.leaks += outgrown(report.lives, report.before)
    report.took_s = time.monotonic() - began
    _weigh_again(cluster, report)
    if report.wrong:
        report.details = cluster.report()
    _leave(cluster, report)
    return report


def _all_serve(found: list[Status]) -> bool:
    return all(can_serve(status) for status in found)


def _ended_by_itself(node: Node, tally: Tally) -> str:
    with tally.lives:
        process = node.process
        if process is None or process in tally.ended or process.poll() is None:
            return ""
        if node.log_text().rstrip().endswith(NO_SPACE):
            tally.ended.add(process)
            node.start()
            return ""
    return f"the daemon of {node.name} ended by itself, exit code {process.poll()}"


def _progress(report: Report, faults: int, since_s: float) -> None:
    story, tally = report.story, report.faults
    print(
        f"{since_s:6.0f} s  {tally.count} of {faults} faults, {story.verdicts[Verdict.WHOLE]} answers whole, "
        f"{story.verdicts[Verdict.CLOSED]} closed, {story.verdicts[Verdict.REFUSED]} refused, "
        f"{len(report.wrong)} WRONG, largest gap {max(story.gaps_s, default=0.0):.1f} s",
        flush=True,
    )


def _weigh_again(cluster: Cluster, report: Report) -> None:
    """What is still more than before after a while is a leak."""

    def leaks() -> list[str]:
        report.after = {node.name: weigh(node) for node in cluster.nodes}
        return [
            f"{name}: {text}" for name, after in report.after.items() for text in grown(report.before[name], after)
        ]

    try:
        wait_for(lambda: not leaks(), SETTLES_WITHIN_S, "nothing has leaked", every_s=1.0)
    except AssertionError:
        report.leaks += leaks()
    for name, after in report.after.items():
        a_fault = (after.log_kib - report.before[name].log_kib) / max(1, report.faults.count)
        if a_fault > LOG_KIB_A_FAULT:
            report.leaks.append(f"{name}: logs grew by {a_fault:.0f} KiB a fault")


def _leave(cluster: Cluster, report: Report) -> None:
    """Both nodes are stopped; what is left of them is a leak."""
    for node in cluster.nodes:
        try:
            if code := node.terminate():
                report.leaks.append(f"{node.name} left with exit code {code}")
        except AssertionError as error:
            report.leaks.append(str(error).partition("\n")[0])
        if left := processes_of(node):
            report.leaks.append(f"{node.name}: {left} were left behind")
        if sockets := weigh(node).sockets:
            report.leaks.append(f"{node.name}: sockets {dict(sockets)} were left behind")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.lab.chaos")
    parser.add_argument("--faults", type=int, default=200, help="end after so many (200)")
    parser.add_argument("--minutes", type=float, default=30.0, help="end after so long all the same (30)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--parallel", choices=("auto", "pipeline", "tensor"), default="auto")
    parser.add_argument(
        "--keep-logs",
        type=Path,
        metavar="FOLDER",
        help="copy the nodes' folders there at the end, and what was broken when",
    )
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    report = run(arguments.seed, arguments.minutes, arguments.faults, arguments.keep_logs, arguments.parallel)
    print("\n".join([report.details, *report.lines()]))
    if arguments.keep_logs is not None:
        told = (f"{at + time.time() - time.monotonic():.3f} {what}" for at, what in report.faults.log)
        (arguments.keep_logs / "faults.log").write_text("\n".join(told) + "\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
