"""What several finished sequences begin with is held once, and is still what a prompt goes on from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import psutil
import pytest
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from exoengine.generate.prompt_cache import Holding, Holdings
from exoengine.model.cache_rollback import StageCaches, arrays_of
from exoengine.protocol import Abort, Aborted, Sampling
from exoengine.ring.pass_log import PassLog
from tests.engine.driver import Answer, Cluster, request
from tests.engine.models import undisturbed

FEATURES = 64
LAYERS = 3
SYSTEM = list(range(1000, 1600))
PROMPT = [7 * index % 250 for index in range(600)]


class Kept:
    """The holdings of one rank, whose keys and values are those of the tokens' own numbers."""

    def __init__(self, kind: type = KVCache, limit: str = "1GiB") -> None:
        self.kind = kind
        self.holdings = Holdings(limit, self.new_caches)
        self.order = 0

    def new_caches(self) -> StageCaches:
        return StageCaches([self.kind() for _ in range(LAYERS)], None)

    def run(self, tokens: list[int], source: int | None = None, position: int = 0) -> int:
        """A request of which the caches end up with `tokens`; its order."""
        self.order += 1
        if source is None:
            holding = self.holdings.go_on(self.order, 0)
        else:
            holding = self.holdings.begin_from(self.holdings.idle()[source], self.order, position)
        caches = holding.caches
        fed = mx.array(tokens[position:], dtype=mx.float32)[None, None, :, None] * mx.ones((1, 1, 1, FEATURES))
        for leaf in caches.leaves:
            leaf.update_and_fetch(fed, fed + 1)
        caches.advance(len(tokens) - position)
        mx.eval(caches.arrays())
        generation: Any = SimpleNamespace(
            order=self.order, pass_log=PassLog(((len(tokens), 512),)), length=len(tokens),
            sequence=lambda start, end: tokens[start:end],
        )  # fmt: skip
        self.holdings.finish(generation)
        return self.order

    def held(self, order: int, position: int) -> Holding:
        return self.holdings.begin_from(self.holdings.idle()[order], 10_000 + order, position)


def numbers(holding: Holding) -> list[list[int]]:
    """The tokens that each layer's keys stand for."""
    found = []
    for leaf in holding.caches.leaves:
        keys = leaf.state[0]
        if isinstance(leaf, QuantizedKVCache):
            keys = mx.dequantize(*keys, group_size=leaf.group_size, bits=leaf.bits)
        found.append([round(float(one)) for one in keys[0, 0, : leaf.offset, 0].tolist()])
    return found


def bytes_of(tokens: int) -> int:
    return LAYERS * 2 * tokens * FEATURES * 4


@pytest.fixture(autouse=True)
def _much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1 << 34, available=1 << 34))


def test_a_system_prompt_of_three_conversations_is_held_once() -> None:
    kept = Kept()
    turns = [[*SYSTEM, *range(first, first + 100)] for first in (1, 201, 401)]
    first = kept.run(turns[0])
    for turn in turns[1:]:
        kept.run(turn, source=first, position=600)
    assert kept.holdings.idle_bytes == bytes_of(600 + 3 * 100)
    for order, turn in enumerate(turns, start=1):
        assert numbers(kept.held(order, 700)) == LAYERS * [turn]


def test_what_each_shares_with_the_next_is_held_once_whatever_its_length() -> None:
    kept = Kept()
    a = kept.run([*SYSTEM, *range(1, 101)])
    b = kept.run([*SYSTEM, *range(1, 51), *range(301, 351)], source=a, position=650)
    c = kept.run([*SYSTEM[:300], *range(501, 601)], source=b, position=300)
    assert kept.holdings.idle_bytes == bytes_of(600 + 100 + 50 + 100)
    assert numbers(kept.held(c, 400)) == LAYERS * [[*SYSTEM[:300], *range(501, 601)]]
    assert numbers(kept.held(b, 700)) == LAYERS * [[*SYSTEM, *range(1, 51), *range(301, 351)]]
    assert numbers(kept.held(a, 620)) == LAYERS * [[*SYSTEM, *range(1, 21)]]


def test_the_last_one_to_go_frees_what_was_shared() -> None:
    kept = Kept()
    a = kept.run([*SYSTEM, *range(1, 101)])
    b = kept.run([*SYSTEM, *range(201, 301)], source=a, position=600)
    kept.holdings.drop([a])
    assert kept.holdings.idle_bytes == bytes_of(700)
    assert numbers(kept.held(b, 500)) == LAYERS * [SYSTEM[:500]]
    kept.holdings.drop([b])
    assert kept.holdings.idle_bytes == 0


def test_more_conversations_fit_than_without() -> None:
    """The bound is in bytes, and what is shared counts once."""
    kept = Kept(limit=str(bytes_of(600 + 10 * 20)))
    first = kept.run([*SYSTEM, *range(1, 21)])
    for number in range(1, 8):
        kept.run([*SYSTEM, *range(100 * number, 100 * number + 20)], source=first, position=600)
    assert len(kept.holdings.idle()) == 8
    assert kept.holdings.idle_bytes == bytes_of(600 + 8 * 20)


def test_a_next_turn_goes_on_from_all_of_it_and_shares_again() -> None:
    kept = Kept()
    a = kept.run([*SYSTEM, *range(1, 101)])
    b = kept.run([*SYSTEM, *range(201, 301)], source=a, position=600)
    longer = [*SYSTEM, *range(201, 401)]
    c = kept.run(longer, source=b, position=700)
    assert set(kept.holdings.idle()) == {a, c}, "the earlier turn is a part of the later one"
    assert kept.holdings.idle_bytes == bytes_of(600 + 100 + 200)
    assert numbers(kept.held(c, 800)) == LAYERS * [longer]


def test_sequences_that_were_computed_each_for_itself_are_held_each_for_itself() -> None:
    """Their bits may differ: whoever goes on from one must get that one's."""
    kept = Kept()
    for _ in range(2):
        kept.run([*SYSTEM, *range(kept.order, kept.order + 100)])
    mx.eval([array for one in kept.holdings.idle().values() for array in arrays_of(one.caches.arrays())])
    assert kept.holdings.idle_bytes >= bytes_of(2 * 700)


def test_what_was_computed_anew_after_a_fault_is_shared_no_more() -> None:
    kept = Kept()
    a = kept.run([*SYSTEM, *range(1, 101)])
    holding = kept.held(a, 600)
    assert holding.in_common(kept.holdings.idle()[a]) == 599
    holding.undo(200)
    assert holding.in_common(kept.holdings.idle()[a]) == 199


def test_quantised_caches_share_too() -> None:
    kept = Kept(QuantizedKVCache)
    a = kept.run([*SYSTEM, *range(1, 101)])
    alone = kept.holdings.idle_bytes
    b = kept.run([*SYSTEM, *range(201, 301)], source=a, position=600)
    assert kept.holdings.idle_bytes < 1.3 * alone
    assert [len(layer) for layer in numbers(kept.held(b, 700))] == LAYERS * [700]


def test_three_conversations_with_one_system_prompt_are_all_found(trio: Cluster, llama: Path) -> None:
    """A, B, A, and on with each, also after a fault: the texts are those of one process without a cache."""
    trio.load(llama, [2, 2, 1])
    trio.form()
    turns = {name: [*PROMPT[:512], *(ord(name) + 3 * index for index in range(60))] for name in "AB"}
    seen: dict[str, list[int]] = {}

    def ask(prompt: list[int], tokens: int = 20) -> Answer:
        answer = trio.generate(request(prompt, tokens, temperature=1.0, seed=4))
        assert answer.tokens == undisturbed(llama, prompt, tokens, Sampling(temperature=1.0, seed=4))
        return answer

    def found(answer: Answer) -> int:
        assert answer.finished is not None
        return answer.finished.cached_tokens

    first = ask(turns["A"])
    assert found(first) == 0
    seen["A"] = first.tokens
    second = ask(turns["B"])
    assert found(second) == 512
    seen["B"] = second.tokens
    assert found(ask(turns["A"])) == len(turns["A"]) - 1
    for rank in trio.ranks:
        rank.send(Abort("the test cuts a link"))
    for rank in trio.ranks:
        rank.expect(Aborted)
    trio.form()
    for name in "BA":
        longer = [*turns[name], *seen[name], 1, 2, 3]
        assert found(ask(longer)) == len(turns[name]) + 19
