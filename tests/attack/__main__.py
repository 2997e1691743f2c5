"""`python -m tests.attack --minutes 10`: a node of this machine under a mixed attack while two clients stream.

Reports the answers (all must be exact), the gaps between tokens, the loop's worst lag as `/metrics` shows it, how
much of it was the daemon's own (`watched_daemon`), memory and log before and after. Touches loopback alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from tests.attack.attackers import strike
from tests.test_single_node import BIN, free_port, write_config

READY_WITHIN_S: Final = 180.0
LAST: Final = 120
"""Each answer counts from 1 to this."""

MOST_MEMORY_BYTES: Final = 128 * 1024 * 1024
MOST_LOG_BYTES: Final = 1024 * 1024
"""By which the daemon may grow, and what it may write, however long it is attacked."""


MOST_HELD_MS: Final = 50.0
"""What no stranger may make the loop exceed, apart from what others took of the processors meanwhile."""


class Report(msgspec.Struct):
    seconds: float
    most_held_ms: float = MOST_HELD_MS
    answers: int = 0
    wrong: list[str] = []
    gaps_ms: list[float] = []
    lag_ms: list[float] = []
    memory_before: int = 0
    memory_after: int = 0
    log_bytes: int = 0
    struck: dict[str, Any] = {}
    stalls: list[dict[str, Any]] = []
    """What `watched_daemon` wrote."""

    began: float = 0.0
    ended: float = 0.0
    """Of the attack, on the monotonic clock, which all processes share."""

    def is_in_attack(self, stall: dict[str, Any]) -> bool:
        return self.began < stall["at"] < self.ended

    def problems(self) -> list[str]:
        found = list(self.wrong[:5])
        if self.answers < 2:
            found.append(f"only {self.answers} answers came")
        grown = self.memory_after - self.memory_before
        if grown > MOST_MEMORY_BYTES:
            found.append(f"memory grew by {grown >> 20} MiB")
        if self.log_bytes > MOST_LOG_BYTES:
            found.append(f"{self.log_bytes} bytes of log were written")
        longest = self.stalls[0]["own"] if self.stalls else 0.0
        if longest > self.most_held_ms:
            found.append(f"the daemon itself held its loop for {longest} ms: {self.stalls[0]}")
        found += [f"{name}: {text}" for name, text in self.struck.items() if isinstance(text, str)]
        return found

    def text(self) -> str:
        gaps = sorted(self.gaps_ms) or [0.0]
        lines = [
            f"{self.seconds:.0f} s, {self.answers} answers, {len(self.wrong)} wrong",
            f"gaps between tokens: median {gaps[len(gaps) // 2]:.1f} ms, p99 {gaps[int(len(gaps) * 0.99)]:.1f} ms, "
            f"longest {gaps[-1]:.1f} ms",
            f"the loop's worst lag in each minute: {', '.join(f'{lag:.0f}' for lag in self.lag_ms)} ms",
            "the loop held by the daemon itself, longest: "
            + (", ".join(f"{one['own']} ms (late {one['late']})" for one in self.stalls[:5]) or "under 20 ms"),
            f"memory: {self.memory_before >> 20} MiB before, {self.memory_after >> 20} MiB after; "
            f"log: {self.log_bytes} bytes",
            "struck: " + ", ".join(f"{name} {count}" for name, count in sorted(self.struck.items())),
        ]
        return "\n".join([*lines, *(f"PROBLEM {one}" for one in self.problems())])


class Client(threading.Thread):
    """Streams one answer after the other and compares each with what it must be."""

    def __init__(self, port: int, report: Report, ended: threading.Event) -> None:
        super().__init__(name="client", daemon=True)
        self._port, self._report, self._ended = port, report, ended

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                text = self._ask()
            except OSError as error:
                self._report.wrong.append(f"{type(error).__name__}: {error}")
                time.sleep(1)
                continue
            if text.split() == [str(number) for number in range(1, LAST + 1)]:
                self._report.answers += 1
            else:
                self._report.wrong.append(f"not what was asked for: {text[-80:]!r}")

    def _ask(self) -> str:
        body = {
            "messages": [{"role": "user", "content": f"count from 1 to {LAST}"}],
            "stream": True,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        text, last = "", 0.0
        with urllib.request.urlopen(request, timeout=120) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                for choice in json.loads(line[6:])["choices"]:
                    piece = choice["delta"].get("content")
                    if piece:
                        now = time.monotonic()
                        if last:
                            self._report.gaps_ms.append(1000 * (now - last))
                        text, last = text + piece, now
        return text


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^([a-z_]+) ([0-9.e+-]+)$", text, re.MULTILINE)}


def _wait_until_ready(port: int) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise SystemExit("the node was not ready in time")


def run(seconds: float, seed: int = 1, only: str = "", most_held_ms: float = MOST_HELD_MS) -> Report:
    report = Report(seconds, most_held_ms)
    with tempfile.TemporaryDirectory(prefix="exod-attack-") as name:
        folder = Path(name)
        http, mesh = free_port(), free_port()
        config = write_config(
            folder,
            api={"port": http},
            mesh={"port": mesh},
            cluster={"mdns": True},
            engine={"model": "embedded:count"},
        )
        log, stalls = folder / "log", folder / "stalls"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EXOD_")}
        with log.open("wb") as output:
            node = subprocess.Popen(
                [BIN / "python", "-m", "tests.attack.watched_daemon", stalls, "run", "--config", config],
                env=environment,
                stdout=output,
                stderr=output,
            )
        try:
            _wait_until_ready(http)
            _attacked(report, node, (http, mesh, folder / "data" / "exod.sock"), log, seed, only)
            if node.poll() is not None:
                report.wrong.append(f"the daemon ended with {node.returncode}: {log.read_text()[-500:]}")
        finally:
            node.terminate()
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
        lines = [json.loads(line) for line in stalls.read_text().splitlines()]
        report.stalls = sorted(filter(report.is_in_attack, lines), key=lambda one: -one["own"])
    return report


def _attacked(
    report: Report, node: subprocess.Popen[bytes], where: tuple[int, int, Path], log: Path, seed: int, only: str
) -> None:
    http, mesh, control = where
    ended = threading.Event()
    clients = [Client(http, report, ended) for _ in range(2)]
    for client in clients:
        client.start()
    time.sleep(min(5.0, report.seconds / 4))
    process = psutil.Process(node.pid)
    report.began = time.monotonic()
    report.memory_before, before = process.memory_info().rss, log.stat().st_size
    spawn = multiprocessing.get_context("spawn")
    result = spawn.Queue()
    striking = spawn.Process(target=strike, args=(http, mesh, str(control), report.seconds, seed, only, result))
    striking.start()
    until = time.monotonic() + report.seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(50.0, left))
        try:
            report.lag_ms.append(1000 * metrics(http).get("exod_loop_lag_seconds", 0.0))
        except OSError as error:
            report.wrong.append(f"/metrics did not answer: {error}")
    report.struck = result.get(timeout=120)
    striking.join(30)
    report.ended = time.monotonic()
    ended.set()
    for client in clients:
        client.join(120)
    report.memory_after, report.log_bytes = process.memory_info().rss, log.stat().st_size - before


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="only the attackers with this in their names")
    arguments = parser.parse_args()
    report = run(60 * arguments.minutes, arguments.seed, arguments.only)
    print(report.text())
    for stall in report.stalls[:20]:
        print(stall)
    return 1 if report.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
