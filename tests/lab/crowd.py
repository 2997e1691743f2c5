"""A crowd: many more clients than slots, and faults meanwhile. Every answer must be the undisturbed one.

`python -m tests.lab.crowd --requests 500 --clients 64 --faults 30 --seed 1` (= `make crowd`). Two hosts, 8 slots,
and a model of random weights whose answers depend on every token before: greedy and drawn ones of random lengths,
with stop strings, JSON by a schema, and calls of tools. Each question is answered once beforehand, alone. Some
clients hang up, in the queue, at once or in mid-answer: what they got must be the beginning of the answer. Exit
code 0 where nothing is wrong, 1 where something is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.bench.rows import percentile
from tests.lab.chaos import LANES
from tests.lab.chat import ChatStream
from tests.lab.cluster import Cluster
from tests.lab.fault_kinds import moved_clock, small_disk
from tests.lab.faults import CONFIG, PROMPT_CACHE, Tally
from tests.lab.leaks import Weight, grown, weigh
from tests.lab.node import Node, wait_for
from tests.lab.oracle import Answer, Heard, Question, Verdict, judge
from tests.lab.reading import can_serve
from tests.lab.topology import Lab

SLOTS = 8
SERVES_WITHIN_S = 90.0
SETTLES_WITHIN_S = 45.0
ANSWER_WITHIN_S = 300.0
"""No client waits longer: seven others may be before it at its slot, and faults meet them all."""
HANGS_UP_SHARE = 0.15
EOS = 257
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Bergen", "Hamar"]}, "rain": {"type": "boolean"}},
    "required": ["city", "rain"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
"""Else a random model invents properties until its tokens are spent."""
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "wait", "parameters": NOTHING}},
]
STRUCTURED = {"response_format": {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}}
CALLED = {"tools": TOOLS, "tool_choice": "required"}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {}, "drawn": {"temperature": 1.0}, "stopped": {"temperature": 1.0, "stop": ["e", "Zu"]},
    "structured": {"temperature": 1.0, **STRUCTURED}, "called": {"temperature": 1.0, **CALLED},
    "with log probabilities": {"temperature": 1.0, "logprobs": True, "top_logprobs": 3},
}  # fmt: skip
OF_EACH_KIND = 4
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def crowd_model(folder: Path) -> Path:
    """Random weights in float32: where an answer's margins are small, what else is computed does not show."""
    from tests.engine.models import QWEN2, write_model

    return write_model(folder, {**QWEN2, "eos_token_id": EOS, "max_position_embeddings": 4096})


def questions(seed: int) -> list[tuple[str, Question]]:
    """Of each kind some, with prompts and answers of random lengths."""
    chosen, found = random.Random(seed), []
    for kind, parameters in KINDS.items():
        for _ in range(OF_EACH_KIND):
            prompt = "".join(chosen.choices(LETTERS, k=chosen.choice((9, 40, 150, 900))))
            longest = 200 if kind in ("structured", "called") else chosen.randint(4, 120)
            more = {"seed": chosen.randrange(2**31), "max_tokens": longest}
            found.append((kind, Question(prompt, {**parameters, **more})))
    return found


@dataclass
class Report:
    """What happened. `wrong` is empty where all is well."""

    seed: int
    faults: Tally
    asked: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    """Of the answers that were whole."""
    wrong: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    longest_queue: int = 0
    took_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lines(self) -> list[str]:
        return [
            f"crowd, seed {self.seed}: {self.asked} requests, {self.faults.count} faults in {self.took_s:.0f} s",
            *(f"  {count:4d} {kind}" for kind, count in sorted(self.faults.began.items())),
            "verdicts: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(self.verdicts.items())),
            "whole answers: " + ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items())),
            f"wait for the first piece, with the queue: {_summed(self.waits_s)}",
            f"longest wait for a next piece in each: {_summed(self.gaps_s)}",
            f"longest queue seen: {self.longest_queue}",
            *(f"WRONG: {text}" for text in [*self.wrong, *self.faults.failed]),
        ]


def _summed(values: Sequence[float]) -> str:
    if not values:
        return "none"
    return f"p50 {percentile(values, 50):.2f} s, p99 {percentile(values, 99):.2f} s, largest {max(values):.2f} s"


class Guest(threading.Thread):
    """One client: asks until all requests are asked."""

    def __init__(
        self, node: Node, known: Sequence[tuple[str, Question, Answer]], to_ask: _Count, report: Report
    ) -> None:
        super().__init__(name=f"guest of {node.name}", daemon=True)
        self._node, self._known, self._to_ask, self._report = node, known, to_ask, report

    def run(self) -> None:
        while (number := self._to_ask.take()) is not None:
            chosen = random.Random(f"{self._report.seed} {number}")
            self._ask(chosen, *chosen.choice(self._known))

    def _ask(self, chosen: random.Random, kind: str, question: Question, answer: Answer) -> None:
        wait_for(self._node.poll_status, ANSWER_WITHIN_S, f"{self._node.name} answers", every_s=0.5)
        life, began = self._node.process, time.monotonic()
        stream = _stream(self._node, question)
        leaves = chosen.random() < HANGS_UP_SHARE
        if leaves:
            _leave(stream, chosen)
        heard = _heard(stream)
        ended = life in self._report.faults.ended or not self._node.running
        verdict, why = _left(answer, heard) if leaves and not heard.ended else _judged(answer, heard, ended)
        self._note(kind, question, stream, verdict, why, began)
        if verdict == Verdict.REFUSED:
            time.sleep(float(heard.retry_after or 1.0))

    def _note(
        self, kind: str, question: Question, stream: ChatStream, verdict: str, why: str, began: float
    ) -> None:  # fmt: skip
        report = self._report
        with report.lock:
            report.asked += 1
            report.verdicts[verdict] += 1
            if verdict == Verdict.WHOLE:
                report.kinds[kind] += 1
            if verdict == Verdict.WRONG:
                what = f"{kind} on {self._node.name}, {question}: {why}; {report.faults.since(began)}"
                report.wrong.append(what)
            if stream.arrivals:
                report.waits_s.append(stream.arrivals[0].at - began)
                report.gaps_s.append(max(stream.gaps_s(), default=0.0))


class _Count:
    """How many are still to be asked."""

    def __init__(self, count: int) -> None:
        self._left, self._lock = count, threading.Lock()

    def take(self) -> int | None:
        with self._lock:
            if self._left == 0:
                return None
            self._left -= 1
            return self._left


def _stream(node: Node, question: Question) -> ChatStream:
    return node.stream_chat(question.prompt, stream_options={"include_usage": True}, **question.parameters)


def _leave(stream: ChatStream, chosen: random.Random) -> None:
    """In the queue, at the first token, or in mid-answer."""
    pieces, until = chosen.choice((0, 1, 8)), time.monotonic() + ANSWER_WITHIN_S
    time.sleep(chosen.uniform(0.0, 0.5))
    while len(stream.arrivals) < pieces and not stream.finished and time.monotonic() < until:
        time.sleep(0.02)
    stream.hang_up()


def _heard(stream: ChatStream) -> Heard:
    ended = stream.wait(ANSWER_WITHIN_S)
    return Heard(
        stream.text + stream.calls,
        stream.usage["completion_tokens"] if stream.usage else None,
        stream.finish_reason,
        stream.ended,
        stream.status,
        stream.error if ended else {"client": f"no end within {ANSWER_WITHIN_S:g} s"},
        stream.retry_after,
    )


def _left(answer: Answer, heard: Heard) -> tuple[str, str]:
    if answer.text.startswith(heard.text):
        return "hung up", ""
    return Verdict.WRONG, f"before it hung up: {heard.text!r} does not begin {answer.text!r}"


def _judged(answer: Answer, heard: Heard, ended: bool) -> tuple[str, str]:
    if heard.status == HTTPStatus.TOO_MANY_REQUESTS and heard.retry_after:
        return Verdict.REFUSED, ""
    if heard.ended and heard.text != answer.text:
        return Verdict.WRONG, f"{heard.text!r} is not {answer.text!r}"
    return judge(answer, heard, own_daemon_ended=ended)


def _undisturbed(node: Node, question: Question) -> Answer:
    heard = _heard(stream := _stream(node, question))
    assert heard.ended, f"undisturbed, {stream.story()}"
    assert heard.tokens is not None
    assert heard.finish_reason is not None
    if "response_format" in question.parameters and heard.finish_reason == "stop":
        assert json.loads(heard.text)["city"], heard
    if "tools" in question.parameters:
        assert (heard.finish_reason, stream.text) == ("tool_calls", ""), heard
    return Answer(heard.text, heard.tokens, heard.finish_reason)


def run(seed: int, requests: int, clients: int, faults: int, minutes: float) -> Report:
    """One run. AssertionError where not even the undisturbed cluster answers."""
    with Lab(2) as lab, contextlib.ExitStack() as after:
        model = crowd_model(lab.folder / "random")
        engine = {"model": str(model), "max_concurrent": SLOTS, "prompt_cache": PROMPT_CACHE}
        cluster = Cluster(lab, (1, 2), config=CONFIG | {"engine": engine, "mqtt": {"broker": "off"}})
        for node in cluster.nodes:
            moved_clock(node)
        after.enter_context(small_disk(cluster.nodes[1]))
        try:
            return _run(cluster, seed, requests, clients, faults, minutes)
        finally:
            cluster.heal()
            cluster.kill9()


def _run(cluster: Cluster, seed: int, requests: int, clients: int, faults: int, minutes: float) -> Report:
    cluster.start()
    _all_serve(cluster)
    known = [(kind, one, _undisturbed(cluster.nodes[0], one)) for kind, one in questions(seed)]
    _say(f"{len(known)} questions answered alone")
    before = {node.name: weigh(node) for node in cluster.nodes}
    began = time.monotonic()
    report = Report(seed, Tally(faults, began + minutes * 60))
    to_ask = _Count(requests)
    guests = [Guest(cluster.nodes[place % len(cluster.nodes)], known, to_ask, report) for place in range(clients)]
    drawn = zip(LANES, (seed, -seed, seed + 1), strict=True)
    lanes = [kind(cluster, report.faults, one) for kind, one in drawn]
    for thread in (*guests, *lanes):
        thread.start()
    _watch(cluster, guests, report, requests)
    report.faults.close()
    for lane in lanes:
        lane.join(SERVES_WITHIN_S)
    cluster.heal()
    _all_serve(cluster)
    report.took_s = time.monotonic() - began
    report.wrong += _leaks(cluster, before)
    return report


def _all_serve(cluster: Cluster) -> None:
    cluster.wait_until(lambda found: all(can_serve(one) for one in found), SERVES_WITHIN_S, "all can serve")


def _watch(cluster: Cluster, guests: Sequence[Guest], report: Report, requests: int) -> None:
    said = time.monotonic()
    while any(guest.is_alive() for guest in guests):
        time.sleep(0.5)
        waiting = [status["engine"]["waiting"] for status in cluster.statuses() or ()]
        report.longest_queue = max(report.longest_queue, *waiting, 0)
        if time.monotonic() - said > 10.0:
            said = time.monotonic()
            _say(f"{report.asked} of {requests}, {report.faults.count} faults, {len(report.wrong)} WRONG")
    report.wrong += [] if report.asked == requests else [f"only {report.asked} of {requests} came to an end"]


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} crowd: {what}", flush=True)


def _leaks(cluster: Cluster, before: dict[str, Weight]) -> list[str]:
    """What is still more than before after a while."""

    def found() -> list[str]:
        return [f"{node.name}: {text}" for node in cluster.nodes for text in grown(before[node.name], weigh(node))]

    try:
        wait_for(lambda: not found(), SETTLES_WITHIN_S, "nothing has leaked", every_s=1.0)
    except AssertionError:
        return found()
    return []


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.lab.crowd")
    parser.add_argument("--requests", type=int, default=500, help="how many are asked (500)")
    parser.add_argument("--clients", type=int, default=64, help="how many ask at once (64)")
    parser.add_argument("--faults", type=int, default=30, help="no more faults than these (30)")
    parser.add_argument("--minutes", type=float, default=20.0, help="no fault begins after so long (20)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    report = run(arguments.seed, arguments.requests, arguments.clients, arguments.faults, arguments.minutes)
    print("\n".join(report.lines()))
    return 1 if report.wrong or report.faults.failed else 0


if __name__ == "__main__":
    sys.exit(main())
