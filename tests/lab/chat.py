"""A client of a node's HTTP API that lives in the node's host, and notes when each token came.

Decides how server-sent events are read and what counts as a number in an answer. Never retries and never repairs:
what the server sent is what the test sees.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.lab.topology import Host

CONNECTS_WITHIN_S = 5.0
# Tokens allowed for each number that is asked for: three digits, a separator, and room for another alphabet.
TOKENS_A_NUMBER = 8


class HostConnection(http.client.HTTPConnection):
    """An HTTP connection from inside `host` to its own loopback."""

    def __init__(self, host: Host, port: int, timeout_s: float) -> None:
        super().__init__("127.0.0.1", port, timeout=timeout_s)
        self._lab_host = host

    def connect(self) -> None:
        self.sock = self._lab_host.socket()
        self.sock.settimeout(CONNECTS_WITHIN_S)
        self.sock.connect((self.host, self.port))
        self.sock.settimeout(self.timeout)


@dataclass(frozen=True)
class Reply:
    """One HTTP reply, read to its end."""

    status: int
    body: bytes
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


def request(host: Host, port: int, method: str, path: str, body: Any = None, *, timeout_s: float = 10.0) -> Reply:
    """One request from inside `host` to its own API; OSError or HTTPException where nobody answers."""
    connection = HostConnection(host, port, timeout_s)
    try:
        sent = None if body is None else json.dumps(body).encode()
        connection.request(method, path, sent, {"content-type": "application/json"})
        response = connection.getresponse()
        return Reply(response.status, response.read(), dict(response.getheaders()))
    finally:
        connection.close()


def numbers(text: str) -> list[int]:
    """The numbers in an answer, in order."""
    return [int(digits) for digits in re.findall(r"\d+", text)]


def count_prompt(first: int, last: int) -> str:
    """What the embedded demo model is asked."""
    return f"count from {first} to {last}"


def chat_body(prompt: str, *, stream: bool, **parameters: Any) -> dict[str, Any]:
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "stream": stream,
    }
    if prompt.startswith("count from "):
        first, last = numbers(prompt)
        body["max_tokens"] = TOKENS_A_NUMBER * (last - first + 2)
    return body | parameters


@dataclass(frozen=True)
class Arrival:
    """A piece of text and when it came, on the monotonic clock."""

    at: float
    text: str


@dataclass
class ChatStream:
    """A streaming chat, read in a thread of its own from the moment it is made."""

    host: Host
    port: int
    body: dict[str, Any]
    idle_timeout_s: float = 120.0
    arrivals: list[Arrival] = field(default_factory=list)
    comments: list[float] = field(default_factory=list)  # when a keep-alive came
    status: int | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None  # OpenAI's error object, or {"client": why} for a broken stream
    ended: bool = False  # the server said [DONE]
    retry_after: str | None = None  # of a refusal
    calls: str = ""  # names and arguments of the tools that were called, as they came
    connection: HostConnection | None = None
    _finished: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, name="chat stream", daemon=True).start()

    @property
    def finished(self) -> bool:
        """Whether the stream is over, well or not."""
        return self._finished.is_set()

    @property
    def text(self) -> str:
        return "".join(arrival.text for arrival in list(self.arrivals))

    @property
    def numbers(self) -> list[int]:
        return numbers(self.text)

    def gaps_s(self) -> list[float]:
        """The times between one piece of text and the next."""
        times = [arrival.at for arrival in list(self.arrivals)]
        return [after - before for before, after in itertools.pairwise(times)]

    def wait_for_numbers(self, count: int, deadline_s: float) -> None:
        """Returns as soon as `count` numbers have come; AssertionError where the stream ends or stalls."""
        end = time.monotonic() + deadline_s
        while len(self.numbers) < count:
            if self._finished.is_set() or time.monotonic() > end:
                raise AssertionError(f"waited for {count} numbers: {self.story()}")
            time.sleep(0.01)

    def wait(self, deadline_s: float) -> bool:
        """Whether the stream is over, well or not, by then."""
        return self._finished.wait(deadline_s)

    def result(self, deadline_s: float) -> str:
        """The whole text, once the stream has ended well; AssertionError otherwise."""
        finished = self.wait(deadline_s)
        if not finished or self.error is not None or not self.ended:
            raise AssertionError(f"the chat did not end well in {deadline_s:g} s: {self.story()}")
        return self.text

    def hang_up(self) -> None:
        """Closes the connection, whatever the server is about to say."""
        if self.connection is not None and self.connection.sock is not None:
            with contextlib.suppress(OSError):
                self.connection.sock.shutdown(socket.SHUT_RDWR)

    def story(self) -> str:
        return (
            f"HTTP status {self.status}, {len(self.arrivals)} pieces, {len(self.comments)} keep-alives, "
            f"finish reason {self.finish_reason}, error {self.error}, "
            f"largest gap {max(self.gaps_s(), default=0.0):.3f} s, text {self.text[-200:]!r}"
        )

    def _read(self) -> None:
        connection = self.connection = HostConnection(self.host, self.port, self.idle_timeout_s)
        try:
            sent = json.dumps(self.body).encode()
            connection.request("POST", "/v1/chat/completions", sent, {"content-type": "application/json"})
            response = connection.getresponse()
            self.status = response.status
            self.retry_after = response.getheader("retry-after")
            if response.status == http.client.OK:
                for line in response:
                    self._take(line.rstrip(b"\r\n"))
            else:
                self.error = json.loads(response.read())["error"]
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self.error = {"client": f"{type(error).__name__}: {error}"}
        finally:
            connection.close()
            self._finished.set()

    def _take(self, line: bytes) -> None:
        now = time.monotonic()
        if line.startswith(b":"):
            self.comments.append(now)
        elif line == b"data: [DONE]":
            self.ended = True
        elif line.startswith(b"data:"):
            chunk = json.loads(line[5:])
            self.error = chunk.get("error", self.error)
            self.usage = chunk.get("usage") or self.usage
            for choice in chunk.get("choices", []):
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                if text := choice["delta"].get("content"):
                    self.arrivals.append(Arrival(now, text))
                for call in choice["delta"].get("tool_calls") or ():
                    self.calls += f"{call['function'].get('name') or ''}{call['function'].get('arguments') or ''}"
