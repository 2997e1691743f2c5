"""A node that has little memory for KV caches: what never fits, what waits, and a queue that is full.

The worker is told of less memory than there is; all else is a node as a user starts it.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.test_single_node import BIN, ENDS_WITHIN_S, READY_WITHIN_S, exoctl, write_config

ROOM = 1500
"""Tokens: one answer of 1,000 fits, two do not."""
LITTLE = f"""
from exoengine.model_files import kv_room
made = kv_room.KvRoom
kv_room.KvRoom = lambda free, needs: made(needs({ROOM}), needs)
"""
QUEUE = 64
"""What may be under way through one node, waiting or not."""
LONG = 400
"""What an answer counts to that takes a few seconds: so long others wait for its memory."""
PATIENCE_S = 120.0


class Node:
    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, body: dict[str, Any]) -> tuple[int, dict[str, Any], float]:
        """Status and body, and the seconds that Retry-After tells."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
            response = connection.getresponse()
            after = float(response.headers.get("retry-after", 0))
            return response.status, json.loads(response.read()), after
        finally:
            connection.close()

    def begin(self, body: dict[str, Any], came: list[Any]) -> threading.Thread:
        """Asks in a thread; puts what came, and when."""
        thread = threading.Thread(target=lambda: came.append((*self.ask(body), time.monotonic())), daemon=True)
        thread.start()
        return thread

    def engine(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/api/status")
            engine: dict[str, Any] = json.loads(connection.getresponse().read())["engine"]
            return engine
        finally:
            connection.close()

    def wait_for(self, active: int, waiting: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while ((engine := self.engine())["active"], engine["waiting"]) != (active, waiting):
            assert time.monotonic() < until, engine
            time.sleep(0.02)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("little")
    (folder / "sitecustomize.py").write_text(LITTLE)
    config = write_config(folder, engine={"model": "embedded:count", "max_concurrent": 8, "spare": "off"})
    port = next(
        int(line.partition("=")[2])
        for line in config.read_text().partition("[api]")[2].splitlines()
        if line.startswith("port")
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXOD_")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "exod", "run", "--config", config],
            env=environment | {"PYTHONPATH": str(folder)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        ready = exoctl(config, "wait", "--for", "ready", "--timeout", READY_WITHIN_S)
        assert ready.returncode == 0, (folder / "log").read_text()[-3000:]
        yield Node(port)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(ENDS_WITHIN_S)
        finally:
            process.kill()


def count(last: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"count from 1 to {last}"}]
    return {"messages": messages, "temperature": 0, "max_tokens": 1000, **more}


def said(answer: dict[str, Any]) -> list[int]:
    text = answer["choices"][0]["message"]["content"]
    return [int(number) for number in text.replace(",", " ").split()]


def test_what_never_fits_is_refused_beside_what_runs_and_what_waits_is_answered(node: Node) -> None:
    first: list[Any] = []
    second: list[Any] = []
    threads = [node.begin(count(LONG, max_tokens=2000), first)]
    node.wait_for(1, 0)
    threads.append(node.begin(count(20), second))
    node.wait_for(2, 0)  # the ranks have it, and it waits there for its memory
    status, refused, _ = node.ask({"messages": [{"role": "user", "content": "1 " * 800}], "max_tokens": 1000})
    assert status == 400
    assert refused["error"]["code"] == "context_length_exceeded"
    assert "tokens of prompt and 1000 of answer needs" in refused["error"]["message"]
    assert not first, "it was refused behind what runs"
    for thread in threads:
        thread.join(PATIENCE_S)
    (status, answer, _, first_at), (status_2, answer_2, _, second_at) = first[0], second[0]
    assert (status, status_2) == (200, 200)
    assert said(answer) == list(range(1, LONG + 1))
    assert said(answer_2) == list(range(1, 21))
    assert second_at > first_at, "a short answer beside a long one would have ended before it"


def test_a_full_queue_is_a_429_and_who_comes_when_told_gets_in(node: Node) -> None:
    assert node.ask(count(15))[0] == 200  # from which it knows how long answers take
    told: list[float] = []
    came: list[Any] = []

    def follow() -> None:
        until = time.monotonic() + PATIENCE_S
        status, answer, after_s = node.ask(count(15))
        while status == 429 and time.monotonic() < until:
            assert answer["error"]["code"] == "queue_full"
            told.append(after_s)
            time.sleep(after_s)
            status, answer, after_s = node.ask(count(15))
        came.append((status, answer))

    long: list[Any] = []
    others_wait_for = node.begin(count(LONG, max_tokens=2000), long)
    node.wait_for(1, 0)
    threads = [threading.Thread(target=follow, daemon=True) for _ in range(QUEUE + 8)]
    for thread in threads:
        thread.start()
    others_wait_for.join(PATIENCE_S)
    assert said(long[0][1]) == list(range(1, LONG + 1))
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    assert len(came) == len(threads)
    assert all(status == 200 and said(answer) == list(range(1, 16)) for status, answer in came)
    assert told, "no queue was full"
    assert all(1 <= after_s <= 60 for after_s in told)
