"""A node of the lab: one `exod` in one host, seen only from outside.

Decides how a daemon is configured, started and killed in the lab. Relies on the contract alone: the config file,
`exoctl` and HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.lab import chat
from tests.lab.reading import Status
from tests.lab.topology import Host

BIN = Path(sys.executable).parent
MESH_PORT = 52410
API_PORT = 52415
RING_PORT = 52420
# The ports the ring may listen on: the first is configured, a re-formed ring may take a later one.
RING_PORTS = range(RING_PORT, RING_PORT + 64)
# What the names of macOS mean; on Linux these are TAP and veth devices, so the config has to say it.
KINDS = {"bridge0": "thunderbolt", "bridge1": "thunderbolt", "en0": "ethernet", "utun4": "vpn"}
STATUS_WITHIN_S = 2.0
EXOCTL_WITHIN_S = 60.0
LEAVES_WITHIN_S = 45.0  # the promise is 30 s
LOG_TAIL_LINES = 40
# Exit codes of `exoctl` that come with a status: healthy, degraded, no path.
ANSWERED = (0, 4, 5)


def new_cluster_key() -> str:
    return secrets.token_hex(32)


def toml(config: dict[str, dict[str, Any]]) -> str:
    """Writes a config: sections of strings, numbers, booleans, lists and flat tables."""
    lines = []
    for section, values in config.items():
        lines += [f"[{section}]", *(f"{key} = {_toml_value(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    match value:
        case dict():
            return "{ " + ", ".join(f'"{key}" = {_toml_value(item)}' for key, item in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
        case _:
            return json.dumps(value)  # strings, numbers and booleans are written alike in both


class Node:
    """One daemon: `start` it, ask it, break it. A new life is a new process on the same data folder."""

    def __init__(self, host: Host, folder: Path, key: str, config: dict[str, dict[str, Any]] | None = None) -> None:
        self.host = host
        self.name = host.name
        self.folder = folder / host.name
        self.data_dir = self.folder / "data"
        self.socket = self.data_dir / "exod.sock"
        self.config_file = self.folder / "exod.toml"
        self.log_file = self.folder / "exod.log"
        self.process: subprocess.Popen[Any] | None = None
        self.environment: dict[str, str] = {}
        """Beside this process's own, for the daemon's next start."""
        self.hidden: list[Path] = []
        """Folders of the disk that all hosts of the lab share, and that this one's next daemon does not have."""
        self.data_dir.mkdir(parents=True, mode=0o700)
        key_file = self.data_dir / "cluster.key"
        key_file.touch(mode=0o600)
        key_file.write_text(key + "\n")
        self.configure(config or {})

    def configure(self, changes: dict[str, dict[str, Any]]) -> None:
        """Writes the config file: the lab's own with `changes`. A running daemon does not read it again."""
        config: dict[str, dict[str, Any]] = {
            "node": {"name": self.name, "data_dir": str(self.data_dir)},
            "cluster": {"name": "lab"},
            "mesh": {"port": MESH_PORT, "kinds": KINDS},
            # tests/lab/test_spare_worker.py has spares; elsewhere they would take the others' time.
            "engine": {"model": "embedded:count", "ring_port": RING_PORT, "spare": "off"},
            "api": {"port": API_PORT},
            "log": {"format": "json"},
        }
        for section, values in changes.items():
            config[section] = config.get(section, {}) | values
        self.config_file.write_text(toml(config))

    # Life and death

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EXOD_")}
        with self.log_file.open("ab") as log:
            self.process = self.host.popen(
                [*self._without_hidden(), BIN / "exod", "run", "--config", self.config_file],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {"PYTHONUNBUFFERED": "1"} | self.environment,
            )

    def _without_hidden(self) -> list[str]:
        """A process in a namespace has its own mounts, too: an empty disk lies over each hidden folder."""
        if not self.hidden:
            return []
        mounts = "; ".join(f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in self.hidden)
        return ["sh", "-ec", f'{mounts}; exec "$@"', "sh"]

    def kill9(self) -> None:
        """The daemon dies at once. Its workers are processes of their own and are left as they are."""
        if self.running:
            self.process.kill()  # type: ignore[union-attr]
            self.process.wait()  # type: ignore[union-attr]

    def terminate(self, deadline_s: float = LEAVES_WITHIN_S) -> int:
        """SIGTERM, then its exit code; AssertionError where it does not leave in time."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not leave within {deadline_s:g} s\n{self.log_tail()}") from None

    def freeze(self) -> None:
        """SIGSTOP for the daemon: it holds its sockets and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def worker_pids(self) -> list[int]:
        """Pids of this node's own ranks, as its status names them."""
        status = self.status()
        ranks = status["engine"]["ranks"]
        return [rank["pid"] for rank in ranks if rank["node"] == status["node"]["id"] and rank["pid"] is not None]

    def kill_workers(self, number: signal.Signals = signal.SIGKILL) -> list[int]:
        """Sends a signal to this node's ranks; returns their pids."""
        pids = self.worker_pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it ended since the status was made
                os.kill(pid, number)
        return pids

    # Questions

    def exoctl(
        self, *arguments: str, check: bool = False, timeout_s: float = EXOCTL_WITHIN_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs `exoctl` against this node, in its host."""
        argv = [BIN / "exoctl", "--socket", self.socket, *arguments]
        return self.host.run(argv, check=check, timeout_s=timeout_s)

    def status(self) -> Status:
        """The status by `exoctl status --json`; AssertionError with its words where there is none."""
        done = self.exoctl("status", "--json")
        if done.returncode not in ANSWERED:
            raise AssertionError(f"{self.name}: exoctl status: exit code {done.returncode}\n{done.stderr}")
        status: Status = json.loads(done.stdout)
        return status

    def poll_status(self) -> Status | None:
        """The same document over HTTP, at a tenth of the cost; None where the node does not answer."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            reply = self.request("GET", "/api/status", timeout_s=STATUS_WITHIN_S)
            if reply.status == http.client.OK:
                status: Status = reply.json()
                return status
        return None

    def events(self) -> list[dict[str, Any]]:
        """The daemon's event log, oldest first."""
        lines = self.exoctl("events", "--json", check=True).stdout.splitlines()
        return [json.loads(line) for line in lines if line.strip()]

    def request(self, method: str, path: str, body: Any = None, *, timeout_s: float = 10.0) -> chat.Reply:
        """One HTTP request to this node's API, from its own host."""
        return chat.request(self.host, API_PORT, method, path, body, timeout_s=timeout_s)

    def chat(self, prompt: str, *, stream: bool = True, deadline_s: float = 120.0, **parameters: Any) -> str:
        """The whole answer to `prompt`; AssertionError where there is none."""
        if stream:
            return self.stream_chat(prompt, **parameters).result(deadline_s)
        body = chat.chat_body(prompt, stream=False, **parameters)
        reply = self.request("POST", "/v1/chat/completions", body, timeout_s=deadline_s)
        assert reply.status == http.client.OK, f"{self.name}: HTTP status {reply.status}: {reply.body!r}"
        answer: str = reply.json()["choices"][0]["message"]["content"]
        return answer

    def stream_chat(self, prompt: str, **parameters: Any) -> chat.ChatStream:
        """Starts a streaming chat and returns it while it runs."""
        return chat.ChatStream(self.host, API_PORT, chat.chat_body(prompt, stream=True, **parameters))

    # The log

    def log_text(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        tail = "\n".join(self.log_text().splitlines()[-lines:])
        return f"--- {self.name}: the last of its log\n{tail}"

    def log_entries(self) -> list[dict[str, Any]]:
        """The log's JSON lines; lines that are not JSON are left out."""
        entries = []
        for line in self.log_text().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    entries.append(entry)
        return entries


def wait_for(check: Any, deadline_s: float, what: str, every_s: float = 0.05) -> Any:
    """Calls `check` until it returns something true, and returns that; AssertionError past the deadline."""
    end = time.monotonic() + deadline_s
    while not (found := check()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(every_s)
    return found
