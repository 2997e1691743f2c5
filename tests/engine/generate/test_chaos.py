"""Faults of every kind at any moment, while sampled answers come: not one token is lost, doubled or changed.

The ranks fail by themselves as well, at a random one of their waits and steps, so that faults fall on each side of
every message: before and after an outcome has travelled, in the roll call, in an opening, while a rank catches up.
The faults are drawn from a seed; when they strike depends on the machine.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exoengine.protocol import (
    Abort,
    Aborted,
    Begin,
    Cancel,
    Form,
    Formed,
    GenerationRequest,
    Loaded,
    Prepared,
    Serving,
    SyncSettings,
)
from tests.engine.architectures import EXPERTS, HYBRID, SLIDING
from tests.engine.driver import GENEROUS_S, Answer, Cluster, Rank, cluster, request
from tests.engine.models import LLAMA, undisturbed, write_model

PROMPT = [(7 * index + 3) % 250 for index in range(90)]
STEPS = 70

CHUNK = 32

FAILS_NOW_AND_THEN = f"""
import os, random, threading
from exoengine.generate import prefill_chunks
from exoengine.generate.pipeline import Pipeline
from exoengine.ring.message_ring import RingLostError, TokenRing
prefill_chunks.chunk_tokens = lambda *_: {CHUNK}
from exoengine.generate import active_request
active_request.chunk_tokens = prefill_chunks.chunk_tokens
chance = random.Random(os.getpid())
def failing(original):
    def call(*args):
        when = chance.random()
        if when < 0.0015:
            raise RingLostError("the test fails before it")
        result = original(*args)
        if when > 0.9985:
            raise RingLostError("the test fails after it")
        return result
    return call
TokenRing.send, TokenRing.receive = failing(TokenRing.send), failing(TokenRing.receive)
TokenRing.receive_or_wake = failing(TokenRing.receive_or_wake)
TokenRing.arrived = failing(TokenRing.arrived)
Pipeline.run, Pipeline.send_again = failing(Pipeline.run), failing(Pipeline.send_again)
"""

WIDE = {**LLAMA, "head_dim": 64}
"""The groups of a quantised KV cache are as wide as a head."""

KINDS: dict[str, tuple[dict[str, Any], int, int]] = {
    "dense": (LLAMA, 0, 0), "sliding": (SLIDING[0], 0, 0), "linear": (HYBRID[1], 0, 0),
    "experts": (EXPERTS[2], 0, 0), "recurrent": (HYBRID[6], 0, 0), "quantised": (LLAMA, 4, 0),
    "quantised cache": (WIDE, 0, 8),
}  # fmt: skip
"""Config, bits of the weights, bits of the KV cache."""


class Keeper:
    """What the daemons do: forms a group whenever there is none, replaces processes, begins requests."""

    def __init__(self, ranks: Cluster) -> None:
        self.cluster = ranks
        self.begun: list[Begin] = []
        self.cancelled: set[str] = set()
        self.losses = 0
        """Groups that were lost to a fault."""
        self._formed: dict[Rank, int] = {}

    @property
    def ranks(self) -> list[Rank]:
        """Those of the plan; others have nothing to do."""
        return self.cluster.ranks[: len(self.cluster.loads)]

    def begin(self, asked: GenerationRequest) -> None:
        self.begun.append(self.cluster.begin(asked))

    def cancel(self, begin: Begin, told: int) -> None:
        self.cancelled.add(begin.request.request_id)
        self.ranks[told].send(Cancel(begin.request.request_id))

    def mend(self) -> None:
        """Forms groups until one stands, where the last is broken or was never formed."""
        until = time.monotonic() + GENEROUS_S
        while self._is_broken():
            assert time.monotonic() < until, [rank.last_said() for rank in self.ranks]
            self.losses += 1
            self.form()

    def form(self) -> None:
        """One attempt, whether a group stands or not."""
        seen = {rank: len(rank.seen) for rank in self.ranks}
        self._formed = {}
        self.cluster.prepare()
        plan = self.cluster.plan
        if self._all_said(Prepared, seen, plan):
            for rank in self.ranks:
                rank.send(Form(*plan, 5.0))
            if self._all_said(Formed, seen, plan):
                self._formed = seen

    def _all_said(self, wanted: type[Prepared | Formed], seen: dict[Rank, int], plan: tuple[str, int]) -> bool:
        def said(rank: Rank) -> Any:
            mine = (one for one in rank.seen[seen[rank] :] if isinstance(one, Prepared | Formed | Aborted))
            return next(
                (one for one in mine if isinstance(one, wanted | Aborted) and one.plan_hash == plan[0]), None
            )

        found = [wait_for(lambda rank=rank: said(rank), rank) for rank in self.ranks]
        return all(isinstance(one, wanted) for one in found)

    def _is_broken(self) -> bool:
        told = (one for rank, seen in self._formed.items() for one in rank.seen[seen:])
        plan = self.cluster.plan[0]
        return not self._formed or any(isinstance(one, Aborted) and one.plan_hash == plan for one in told)

    def replace(self, victim: int, known: int) -> None:
        """Kills a process. The next is told of each request, and of up to `known` tokens of its answer."""
        ranks = self.cluster
        ranks.ranks[victim].close()
        ranks.ranks[victim] = fresh = ranks.start()
        fresh.send(ranks.loads[victim])
        fresh.expect(Loaded)
        survivor = self.ranks[victim - 1]
        for begin in self.begun:
            tokens = Answer(survivor.seen, begin.request.request_id).tokens
            fresh.send(msgspec.structs.replace(begin, tokens=tuple(tokens[:known])))
            if begin.request.request_id in self.cancelled:
                fresh.send(Cancel(begin.request.request_id))
        self._formed = {}

    def come_to(self, begin: Begin, index: int) -> None:
        """Mends what breaks until rank 0 has told this token, or the end."""
        until = time.monotonic() + 2 * GENEROUS_S
        while True:
            answer = Answer(self.ranks[0].seen, begin.request.request_id)
            if answer.finished is not None or (answer.outs and answer.outs[-1].index >= index):
                return
            assert time.monotonic() < until, [rank.last_said() for rank in self.ranks]
            self.mend()
            time.sleep(0.002)

    def finish(self) -> list[list[Answer]]:
        """All answers, by request and rank."""
        until = time.monotonic() + 2 * GENEROUS_S
        while True:
            found = [[Answer(rank.seen, begin.request.request_id) for rank in self.ranks] for begin in self.begun]
            if all(answer.finished is not None for answers in found for answer in answers):
                return found
            assert time.monotonic() < until, [rank.last_said() for rank in self.ranks]
            self.mend()
            time.sleep(0.002)


def wait_for(said: Callable[[], Any], rank: Rank) -> Any:
    until = time.monotonic() + GENEROUS_S
    while (found := said()) is None:
        assert time.monotonic() < until, rank.last_said()
        time.sleep(0.002)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("chaos"), 3, prelude=FAILS_NOW_AND_THEN) as made:
        yield made


TENSOR = 0
"""Instead of a number of stages: a tensor group of two ranks."""


def load(ranks: Cluster, folder: Path, config: dict[str, Any], size: int, **options: Any) -> int:
    """Gives the number of ranks."""
    layers, settings = config["num_hidden_layers"], SyncSettings(step_deadline_s=1.0)
    if size == TENSOR:
        said = ranks.load_parts(folder, 2, layers, settings, **options)
    else:
        split = [1, layers - 1] if size == 2 else [1, 2, layers - 3]
        said = ranks.load(folder, split, settings, **options)
    assert all(isinstance(one, Loaded) for one in said), said
    return len(said)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *((kind, 3) for kind in KINDS),
        ("sliding", 2),
        ("quantised cache", 2),
        ("dense", TENSOR),
        ("quantised cache", TENSOR),
    ],
)
def test_faults_at_any_moment_change_nothing(ranks: Cluster, tmp_path: Path, kind: str, size: int) -> None:
    config, bits, kv_bits = KINDS[kind]
    folder = write_model(tmp_path / "model", config, bits=bits)
    chance, keeper = random.Random(f"{kind} {size}"), Keeper(ranks)
    size = load(ranks, folder, config, size, kv_bits=kv_bits)
    first, second, third = (request(PROMPT, STEPS, temperature=1.0, seed=seed, logprobs=0) for seed in (1, 2, 3))
    keeper.form()
    keeper.begin(first)
    for fault in chance.sample(["abort", "abort twice", "kill", "stop", "move", "abort and begin"], 6):
        keeper.come_to(keeper.begun[0], chance.randrange(-1, STEPS))
        victim = chance.randrange(size)
        if fault == "abort and begin":
            ranks.ranks[victim].send(Abort("the test cuts a link"))
            keeper.begin(second)
            keeper.begin(third)
            keeper.cancel(keeper.begun[-1], victim)
        else:
            strike(keeper, chance, fault, victim)
    check(keeper, folder, kv_bits)


def strike(keeper: Keeper, chance: random.Random, fault: str, victim: int) -> None:
    ranks = keeper.cluster
    match fault:
        case "abort":
            ranks.ranks[victim].send(Abort("the test cuts a link"))
        case "abort twice":
            ranks.ranks[victim].send(Abort("the test cuts a link"))
            keeper.form()
            ranks.ranks[victim - 1].send(Abort("the test cuts another link"))
        case "kill":
            keeper.replace(victim, known=chance.randrange(STEPS))
        case "stop":
            ranks.ranks[victim].kill(signal.SIGSTOP)
            time.sleep(chance.choice([0.3, 1.5]))  # shorter and longer than a step's deadline
            ranks.ranks[victim].kill(signal.SIGCONT)
        case "move":
            keeper.form()


def check(keeper: Keeper, folder: Path, kv_bits: int) -> None:
    """Every rank told every answer as a single undisturbed process gives it, whole or as far as it was let."""
    answers = keeper.finish()
    assert keeper.losses > 0
    for begin, told in zip(keeper.begun, answers, strict=True):
        asked = begin.request
        assert isinstance(asked.prompt, tuple)
        expected = undisturbed(folder, asked.prompt, asked.max_tokens, asked.sampling, chunk=CHUNK, kv_bits=kv_bits)
        ends = {answer.finished.reason for answer in told if answer.finished is not None}
        assert ends == ({"cancelled"} if asked.request_id in keeper.cancelled else {"length"})
        tokens = max((answer.tokens for answer in told), key=len)
        assert tokens == expected[: len(tokens)]
        assert asked.request_id in keeper.cancelled or len(tokens) == asked.max_tokens
        for answer in told:
            assert answer.tokens == tokens[len(tokens) - len(answer.tokens) :]
            assert all(out.logprob is not None for out in answer.outs)


@pytest.mark.parametrize(
    ("kind", "size"), [("dense", 3), ("dense", 2), ("sliding", 3), ("recurrent", 2), ("dense", TENSOR)]
)
def test_faults_at_any_moment_change_none_of_many_answers(
    ranks: Cluster, tmp_path: Path, kind: str, size: int
) -> None:  # fmt: skip
    """Six to eight at once: some decode while others are prefilled, some begin alike, some are cancelled."""
    config, bits, kv_bits = KINDS[kind]
    folder = write_model(tmp_path / "model", config, bits=bits)
    chance, keeper = random.Random(f"many {kind} {size}"), Keeper(ranks)
    size = load(ranks, folder, config, size, kv_bits=kv_bits, serving=Serving(6))
    asked = [
        request(
            PROMPT[: 40 + 7 * seed] + [seed] * (3 * seed), STEPS - 5 * seed, temperature=1.0, seed=seed, logprobs=0
        )
        for seed in range(8)
    ]
    keeper.form()
    for one in asked[:6]:
        keeper.begin(one)
    for fault in ["abort", "kill", "stop", "move", "abort twice"]:
        keeper.come_to(keeper.begun[0], chance.randrange(-1, STEPS))
        if fault == "move":
            keeper.begin(asked[6])
            keeper.begin(asked[7])
            keeper.cancel(keeper.begun[-1], chance.randrange(size))
        strike(keeper, chance, fault, chance.randrange(size))
    check(keeper, folder, kv_bits)
