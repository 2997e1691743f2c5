"""Clients that ask without a pause while things break, and hand each stream to the judge.

Some questions are counts at temperature 0, whose answers are known; some are drawn at temperature 1 with a seed,
and were answered before the first fault. There each token depends on all before it: what is lost, doubled or drawn
differently changes the whole rest. Decides what is asked; `oracle` decides what is right.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from exoengine.embedded import model_folder
from tests.lab.chat import ChatStream, count_prompt
from tests.lab.faults import Tally
from tests.lab.node import Node
from tests.lab.oracle import Answer, Heard, Question, Verdict, judge

SAMPLED_SHARE = 0.4
LONGEST_COUNT = 300
SAMPLED = 5
SAMPLED_TOKENS = 250
SHORTEST_SAMPLED = 60
"""A draw may end an answer at any time; such a question is not worth asking under faults."""
ANSWER_WITHIN_S = 300.0
"""An answer may meet many faults, and wait for those of three other clients, which meet some too."""
LONG_GAP_S = 8.0
"""What the report tells the story of."""
FLATTER = 8
"""The demo model is so sure of itself that a draw at temperature 1 is none. Its last norm divided by a power of
two counts at temperature 0 as before and draws as at temperature 8. In float32: a tensor group adds in another
order than a node that answers alone for a while, and in float16 that changes what is drawn from close scores."""


def flat_model(folder: Path) -> Path:
    """Writes the demo model that can also be surprised, as a folder."""
    import mlx.core as mx

    source = model_folder("embedded:count")
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
            continue
        weights = mx.load(str(file))
        assert isinstance(weights, dict)
        weights = {name: weight.astype(mx.float32) for name, weight in weights.items()}
        weights["model.norm.weight"] = weights["model.norm.weight"] / FLATTER
        mx.save_safetensors(str(folder / file.name), weights, metadata={"format": "mlx"})
    return folder


def a_count(chosen: random.Random) -> tuple[Question, Answer]:
    """A number is a token, and the end is one more: this answer need not be asked for."""
    first = chosen.randint(1, 600)
    last = first + chosen.randint(20, LONGEST_COUNT)
    text = " ".join(map(str, range(first, last + 1)))
    return Question(count_prompt(first, last)), Answer(text, last - first + 2, "stop")


def sampled_answers(node: Node, seed: int) -> list[tuple[Question, Answer]]:
    """Draws of an undisturbed cluster."""
    chosen, found = random.Random(seed), []
    while len(found) < SAMPLED:
        parameters = {"temperature": 1.0, "seed": chosen.randrange(2**31), "max_tokens": SAMPLED_TOKENS}
        question = Question(count_prompt(1, 200), parameters)
        answer = undisturbed(node, question)
        if answer.tokens >= SHORTEST_SAMPLED:
            found.append((question, answer))
    return found


def undisturbed(node: Node, question: Question) -> Answer:
    """What a cluster with nothing broken answers; AssertionError where it does not."""
    heard = _heard(stream := _ask(node, question), ANSWER_WITHIN_S)
    assert heard.ended, f"undisturbed, {stream.story()}"
    assert heard.tokens is not None
    assert heard.finish_reason is not None
    return Answer(heard.text, heard.tokens, heard.finish_reason)


def _ask(node: Node, question: Question) -> ChatStream:
    return node.stream_chat(question.prompt, stream_options={"include_usage": True}, **question.parameters)


def _heard(stream: ChatStream, within_s: float) -> Heard:
    if not stream.wait(within_s):
        return Heard(stream.text, status=stream.status, error={"client": f"no end within {within_s:g} s"})
    return Heard(
        stream.text,
        stream.usage["completion_tokens"] if stream.usage else None,
        stream.finish_reason,
        stream.ended,
        stream.status,
        stream.error,
        stream.retry_after,
    )


@dataclass
class Story:
    """What became of all streams."""

    verdicts: Counter[str] = field(default_factory=Counter)
    sampled: int = 0
    begun_in_a_fault: int = 0
    wrong: list[str] = field(default_factory=list)
    long_gaps: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    """The longest wait for a next token of each whole answer."""
    waits_s: list[float] = field(default_factory=list)
    """For its first token: the queue included."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client(threading.Thread):
    """Asks on one node, stream after stream, until told to stop."""

    def __init__(
        self, node: Node, sampled: list[tuple[Question, Answer]], seed: int, story: Story, tally: Tally
    ) -> None:
        super().__init__(name=f"client of {node.name}", daemon=True)
        self._node, self._sampled, self._random = node, sampled, random.Random(seed)
        self._story, self._tally = story, tally
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            life = self._node.process
            if self._node.poll_status() is None:
                time.sleep(0.1)  # between a kill and the next life
                continue
            draws = self._random.random() < SAMPLED_SHARE
            question, answer = self._random.choice(self._sampled) if draws else a_count(self._random)
            began, in_a_fault = time.monotonic(), bool(self._tally.active)
            stream = _ask(self._node, question)
            heard = _heard(stream, ANSWER_WITHIN_S)
            verdict, why = judge(answer, heard, own_daemon_ended=life in self._tally.ended)
            with self._story.lock:
                self._note(question, stream, verdict, began)
                self._story.begun_in_a_fault += in_a_fault
                if verdict is Verdict.WRONG:
                    self._story.wrong.append(f"{self._node.name}, {question}: {why}; {self._tally.since(began)}")
            if verdict is Verdict.REFUSED:
                time.sleep(float(heard.retry_after or 0.0))
            while self._node.process is life and life in self._tally.ended and not self.stopping:
                time.sleep(0.1)  # one that is leaving refuses at once

    def _note(self, question: Question, stream: ChatStream, verdict: Verdict, began: float) -> None:
        story, gaps = self._story, stream.gaps_s()
        story.verdicts[verdict] += 1
        if verdict is Verdict.WHOLE:
            story.sampled += "seed" in question.parameters
            story.gaps_s.append(max(gaps, default=0.0))
            story.waits_s.append(stream.arrivals[0].at - began)
        for gap, arrival in zip(gaps, list(stream.arrivals), strict=False):
            if gap > LONG_GAP_S:
                at = time.strftime("%H:%M:%S", time.gmtime(time.time() - time.monotonic() + arrival.at))
                during = "; ".join(self._tally.since(arrival.at - 2.0)[:12])
                story.long_gaps.append(f"{gap:.1f} s on {self._node.name} from {at} UTC: {during}")
