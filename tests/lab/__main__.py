"""`make lab`: a lab for people, with a live view of every node's status.

    python -m tests.lab [--hosts 2|3] [--shared-bridge] [--keep-logs FOLDER]

Decides what a person may do to the lab while it runs. On a terminal it redraws the view and reads commands
below it; otherwise it prints the statuses every few seconds and reads commands from standard input. Ctrl-C
or `quit` ends it and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Group
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from tests.lab.cluster import Cluster
from tests.lab.netns import missing_capability
from tests.lab.node import BIN, Node
from tests.lab.topology import Lab, Link

REFRESH_EVERY_S = 1.0  # `exoctl` costs a tenth of a second of processor each time
PRINT_EVERY_S = 5.0  # where there is no terminal to redraw
KEYS_EVERY_S = 0.2
SLOW_MS = 20.0
LEAVES_WITHIN_S = 15.0

HELP = """\
cut LINK            drop every frame            slow LINK [MS]    delay each way (20 ms)
lossy LINK PERCENT  drop some frames            unplug LINK       drop the carrier too
restore [LINK]      undo, one link or all       kill N            kill -9 the daemon in host N
start N             start it again              freeze N, thaw N  SIGSTOP, SIGCONT
chat N FIRST LAST   count, streamed from N      help, quit"""


class CommandError(ValueError):
    """What was typed cannot be done; the message says why."""


class Commands:
    """Carries out typed commands, and remembers the last thing worth saying."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.lab = cluster.lab
        self.message = ""
        self.quitting = False

    def obey(self, line: str) -> None:
        """Carries out one line; `message` says what came of it."""
        words = line.split()
        if not words:
            return
        try:
            self.message = self._carry_out(words[0], words[1:])
        except CommandError as error:
            self.message = str(error)
        except (ValueError, IndexError):
            self.message = f"`{line}` is incomplete or has a number that is none; `help` shows the commands"

    def _carry_out(self, verb: str, words: list[str]) -> str:
        match verb:
            case "cut":
                self._link(words[0]).cut()
                return f"{words[0]} is cut"
            case "slow":
                delay_ms = float(words[1]) if len(words) > 1 else SLOW_MS
                self._link(words[0]).set(delay_ms=delay_ms)
                return f"{words[0]} takes {delay_ms:g} ms each way"
            case "lossy":
                self._link(words[0]).set(loss=float(words[1]) / 100)
                return f"{words[0]} loses {words[1]}%"
            case "unplug":
                self._link(words[0]).unplug()
                return f"{words[0]} is unplugged"
            case "restore":
                for link in [self._link(words[0])] if words else self.lab.links.values():
                    link.plug()
                return f"{words[0] if words else 'every link'} is as it was"
            case "kill":
                self._node(words[0]).kill9()
                return f"the daemon in studio{words[0]} is dead"
            case "start":
                node = self._node(words[0])
                if node.running:
                    raise CommandError(f"{node.name} runs already")
                node.start()
                return f"{node.name} starts"
            case "freeze":
                self._running(words[0]).freeze()
                return f"studio{words[0]} is stopped (SIGSTOP)"
            case "thaw":
                self._running(words[0]).thaw()
                return f"studio{words[0]} goes on"
            case "chat":
                return self._chat(self._running(words[0]), int(words[1]), int(words[2]))
            case "help":
                return HELP
            case "quit" | "exit" | "q":
                self.quitting = True
                return "leaving"
            case _:
                raise CommandError(f"unknown command `{verb}`; `help` shows the commands")

    def _link(self, name: str) -> Link:
        if name not in self.lab.links:
            raise CommandError(f"no link {name}; there are {', '.join(self.lab.links)}")
        return self.lab.link(name)

    def _node(self, number: str) -> Node:
        for node in self.cluster.nodes:
            if str(node.host.number) == number:
                return node
        raise CommandError(f"no host {number}; there are 1 to {len(self.cluster.nodes)}")

    def _running(self, number: str) -> Node:
        node = self._node(number)
        if not node.running:
            raise CommandError(f"{node.name} does not run; `start {number}` starts it")
        return node

    def _chat(self, node: Node, first: int, last: int) -> str:
        stream = node.stream_chat(f"count from {first} to {last}")

        def follow() -> None:
            """Shows the newest of the stream until it ends."""
            while not stream.finished:
                self.message = f"{node.name}: … {stream.text[-60:]}"
                time.sleep(KEYS_EVERY_S)
            right = stream.numbers == list(range(first, last + 1))
            verdict = "every number in order" if right and stream.error is None else "NOT as asked"
            self.message = f"{node.name}: {verdict}; {stream.story()}"

        threading.Thread(target=follow, name="chat", daemon=True).start()
        return f"{node.name} is asked"


def how_to_talk(cluster: Cluster) -> str:
    """Commands for another terminal."""
    node = cluster.nodes[0]
    inside = f"ip netns exec {node.host.namespace}"
    return (
        f"{BIN / 'exoctl'} --socket {node.socket} links\n"
        f"{inside} {BIN / 'exoctl'} --socket {node.socket} chat 'count from 3 to 60'\n"
        f"{inside} curl -s http://127.0.0.1:52415/api/status\n"
        f"logs: {node.log_file} and beside it"
    )


def faults(lab: Lab) -> str:
    """What is wrong with which link now, in a line."""
    found = []
    for name, link in lab.links.items():
        for (source, target), figures in link.directions().items():
            conditions = {key: value for key, value in figures["conditions"].items() if value}
            if conditions and not (name == "utun4" and set(conditions) == {"delay_ms"}):
                text = ", ".join(f"{key} {value}" for key, value in conditions.items())
                found.append(f"{name} {source}→{target}: {text}")
    return "; ".join(found) or "no fault lies on any link"


class Watch:
    """Asks each node's `exoctl status` in turn, in a thread, so that a stopped node never stops the view."""

    def __init__(self, cluster: Cluster, every_s: float) -> None:
        self.screens = {node.name: "starting" for node in cluster.nodes}
        self._every_s = every_s
        for node in cluster.nodes:
            threading.Thread(target=self._follow, args=(node,), name=node.name, daemon=True).start()

    def _follow(self, node: Node) -> None:
        while True:
            self.screens[node.name] = self._ask(node)
            time.sleep(self._every_s)

    @staticmethod
    def _ask(node: Node) -> str:
        if not node.running:
            code = None if node.process is None else node.process.poll()
            return f"not running (exit code {code})\n\n{node.log_tail(12)}"
        try:
            done = node.exoctl("--no-color", "status", timeout_s=5.0)
        except (subprocess.TimeoutExpired, OSError) as error:
            return f"no answer: {type(error).__name__}"
        return done.stdout or done.stderr


def show_live(cluster: Cluster, commands: Commands, stop: Callable[[], bool]) -> None:
    """The view on a terminal: one panel a node, the command line below."""
    watch, typed = Watch(cluster, REFRESH_EVERY_S), ""
    nodes = [node.name for node in cluster.nodes]

    def view() -> Layout:
        layout = Layout()
        wrong = faults(cluster.lab)
        below = Group(
            Text(wrong, style="bold red" if "→" in wrong else "green"),
            Text(commands.message),
            Text(f"> {typed}▏", style="bold"),
        )
        layout.split_column(Layout(name="nodes"), Layout(Panel(below, title="the lab"), size=10))
        layout["nodes"].split_row(*(Layout(Panel(Text(watch.screens[name]), title=name)) for name in nodes))
        return layout

    with characters() as read, Live(view(), screen=True, auto_refresh=False) as live:
        while not (stop() or commands.quitting):
            for character in read(KEYS_EVERY_S):
                if character in "\r\n":
                    commands.obey(typed)
                    typed = ""
                elif character in "\x7f\b":
                    typed = typed[:-1]
                elif character == "\x04":
                    commands.quitting = True
                elif character.isprintable():
                    typed += character
            live.update(view(), refresh=True)


@contextlib.contextmanager
def characters() -> Iterator[Callable[[float], str]]:
    """A reader of single key presses; the terminal is as it was afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def read(timeout_s: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], timeout_s)
        return os.read(descriptor, 1024).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(descriptor)
        yield read
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def show_plain(cluster: Cluster, commands: Commands, stop: Callable[[], bool]) -> None:
    """The view without a terminal: statuses as they change, commands from standard input."""
    watch, pending, said, printed_at = Watch(cluster, PRINT_EVERY_S), b"", "", 0.0
    listening = True
    while not (stop() or commands.quitting):
        ready, _, _ = select.select([sys.stdin] if listening else [], [], [], KEYS_EVERY_S)
        if ready:
            chunk = os.read(sys.stdin.fileno(), 4096)
            listening = bool(chunk)
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                commands.obey(line.decode(errors="replace"))
                print(said := commands.message, flush=True)
        if commands.message != said:
            said = commands.message
            print(said, flush=True)
        if time.monotonic() - printed_at > PRINT_EVERY_S:
            printed_at = time.monotonic()
            print(f"\n{faults(cluster.lab)}")
            for name, screen in watch.screens.items():
                print(f"--- {name}\n{screen}", flush=True)


def leave(cluster: Cluster, keep_logs: Path | None) -> None:
    """Lets every daemon leave in order, then keeps the logs where asked."""
    running = [node for node in cluster.nodes if node.running]
    for node in running:
        node.thaw()
        os.kill(node.pid, signal.SIGTERM)
    end = time.monotonic() + LEAVES_WITHIN_S
    while any(node.running for node in running) and time.monotonic() < end:
        time.sleep(KEYS_EVERY_S)
    if keep_logs is not None:
        keep_logs.mkdir(parents=True, exist_ok=True)
        for node in cluster.nodes:
            if node.log_file.exists():
                shutil.copy(node.log_file, keep_logs / f"{node.name}.log")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, choices=(2, 3), default=2)
    parser.add_argument("--shared-bridge", action="store_true", help="one bridge0 for all hosts")
    parser.add_argument("--keep-logs", type=Path, metavar="FOLDER", help="copy the daemons' logs there")
    options = parser.parse_args()
    if reason := missing_capability():
        print(f"make lab: {reason}", file=sys.stderr)
        return 1

    asked_to_stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked_to_stop.set())
    with Lab(options.hosts, shared_bridge=options.shared_bridge) as lab:
        cluster = Cluster(lab)
        cluster.start()
        commands = Commands(cluster)
        commands.message = f"from another terminal:\n{how_to_talk(cluster)}\ntype `help` for the commands"
        show = show_live if sys.stdin.isatty() and sys.stdout.isatty() else show_plain
        try:
            show(cluster, commands, asked_to_stop.is_set)
        finally:
            leave(cluster, options.keep_logs)
    print("the lab is gone: no namespace, process or file of it is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
