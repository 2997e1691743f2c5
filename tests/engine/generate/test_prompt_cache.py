"""A prompt that begins like the last request's sequence is prefilled only from there on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import psutil
import pytest
from mlx_lm.models.cache import KVCache

from exoengine.generate.prompt_cache import Holding, offer_of_running
from exoengine.model import cache_rollback
from exoengine.model.cache_rollback import StageCaches
from exoengine.protocol import Abort, Aborted, Cancel, Sampling, Serving, SyncSettings, TokenOut
from exoengine.ring.message_ring import RingLostError
from exoengine.ring.pass_log import PassLog
from tests.engine.architectures import HYBRID
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import undisturbed, write_model

PROMPT = [7 * index % 250 for index in range(700)]
MORE = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def ranks(trio: Cluster, llama: Path) -> Cluster:
    trio.load(llama, [2, 2, 1])
    trio.form()
    return trio


def cached(answer: Answer) -> int:
    assert answer.finished is not None
    return answer.finished.cached_tokens


def test_a_follow_up_turn_prefills_only_what_is_new(ranks: Cluster, llama: Path) -> None:
    first = ranks.generate(request(PROMPT, 20))
    assert cached(first) == 0
    turn = [*PROMPT, *first.tokens, *MORE]
    second = ranks.generate(request(turn, 20, temperature=1.0, seed=4))
    assert cached(second) == len(PROMPT) + 19  # the last token was drawn, and never put through the layers
    assert second.tokens == undisturbed(llama, turn, 20, Sampling(temperature=1.0, seed=4))
    third = ranks.generate(request([*turn, *second.tokens, *MORE], 20))
    assert cached(third) == len(turn) + 19
    assert third.tokens == undisturbed(llama, [*turn, *second.tokens, *MORE], 20)


def test_the_same_prompt_again_is_prefilled_no_more(ranks: Cluster) -> None:
    first, second = (ranks.generate(request(PROMPT, 20, temperature=1.0, seed=4)) for _ in range(2))
    assert (cached(first), cached(second)) == (0, len(PROMPT) - 1)
    assert first.tokens == second.tokens


def test_a_beginning_in_common_is_used_up_to_a_whole_chunk(ranks: Cluster, llama: Path) -> None:
    ranks.generate(request(PROMPT, 5))
    other = [*PROMPT[:600], *MORE]
    answer = ranks.generate(request(other, 20))
    assert cached(answer) == 512
    assert answer.tokens == undisturbed(llama, other, 20)
    assert cached(ranks.generate(request([1, *PROMPT], 5))) == 0


def test_a_fault_in_a_follow_up_turn_changes_nothing(ranks: Cluster, llama: Path) -> None:
    first = ranks.generate(request(PROMPT, 20))
    turn = [*PROMPT, *first.tokens, *MORE]
    expected = ranks.generate(request(turn, 300, temperature=1.0, seed=4))
    ranks.load(llama, [2, 2, 1])  # forgets all
    ranks.form()
    ranks.generate(request(PROMPT, 20))
    asked = request(turn, 300, temperature=1.0, seed=4)
    ranks.begin(asked)
    for victim in (0, 1, 2):
        wanted = (asked.request_id, 40 + 60 * victim)
        ranks.ranks[0].expect(TokenOut, where=lambda said, at=wanted: (said.request_id, said.index) >= at)
        ranks.ranks[victim].send(Abort("the test cuts a link"))
        for rank in ranks.ranks:
            rank.expect(Aborted)
        ranks.form()
    for answer in ranks.finish(asked.request_id):
        assert isinstance(answer, Answer)
        assert (answer.tokens, cached(answer)) == (expected.tokens, cached(expected))


@pytest.mark.parametrize("told", [0, 1, 2])
def test_an_answer_that_was_cancelled_is_gone_on_from(ranks: Cluster, llama: Path, told: int) -> None:
    """What the ranks had begun or built of a step that is not run must not be in their caches."""
    asked = request(PROMPT, 400)
    ranks.begin(asked)
    ranks.ranks[0].expect(TokenOut, where=lambda said: (said.request_id, said.index) >= (asked.request_id, 15))
    ranks.ranks[told].send(Cancel(asked.request_id))
    first = ranks.finish(asked.request_id)[0]
    assert isinstance(first, Answer)
    assert len(first.tokens) < 400
    turn = [*PROMPT, *first.tokens, *MORE]
    second = ranks.generate(request(turn, 20))
    assert cached(second) == len(PROMPT) + len(first.tokens) - 1
    assert second.tokens == undisturbed(llama, turn, 20)


SITS_OUT = """
from pathlib import Path
from exoengine.ring.hidden_states import InGraph
sit_out = InGraph.sit_out
def noted(self):
    sit_out(self)
    with Path({seen!r}).open("a") as file:
        file.write(f"{{self.array.item()}}\\n")
InGraph.sit_out = noted
"""


def test_a_token_that_nobody_wants_any_more_is_taken_off_the_ring(tmp_path: Path, llama: Path) -> None:
    """Of a fast step that rank 0 had begun ahead: the next safe one reads from the same connection without MLX."""
    seen = tmp_path / "seen"
    with cluster(tmp_path, 2, prelude=SITS_OUT.format(seen=str(seen))) as ranks:
        ranks.load(llama, [2, 3], SyncSettings(sync="fast"))
        ranks.form()
        asked = request(PROMPT, 400)
        ranks.begin(asked)
        ranks.ranks[0].expect(TokenOut, where=lambda said: said.index >= 15)
        ranks.ranks[1].send(Cancel(asked.request_id))  # rank 0 hears of it when it has begun
        answer = ranks.finish(asked.request_id)[0]
        assert isinstance(answer, Answer)
        assert seen.read_text().split() == [str(answer.tokens[-1])]
        turn = [*PROMPT, *answer.tokens, *MORE]
        assert ranks.generate(request(turn, 20)).tokens == undisturbed(llama, turn, 20)


def test_a_request_that_never_began_leaves_the_caches_alone(ranks: Cluster, llama: Path) -> None:
    ranks.load(llama, [2, 2, 1], serving=Serving(1))
    ranks.form()
    ranks.generate(request(PROMPT, 5))
    busy, waiting = request(PROMPT, 30), request(MORE, 5)
    ranks.begin(busy)
    ranks.begin(waiting)
    ranks.ranks[1].send(Cancel(waiting.request_id))
    ranks.finish(busy.request_id)
    ranks.finish(waiting.request_id)
    assert cached(ranks.generate(request(PROMPT, 5))) == len(PROMPT) - 1


def test_caches_that_cannot_be_trimmed_are_prefilled_again(trio: Cluster, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", HYBRID[0])
    trio.load(folder, [1, 2, 1])
    trio.form()
    for _ in range(2):
        answer = trio.generate(request(PROMPT, 5))
        assert cached(answer) == 0
        assert answer.tokens == undisturbed(folder, PROMPT, 5)


def test_a_rank_that_catches_up_offers_what_it_holds_and_gives_no_more() -> None:
    """After it was replaced its pass log, which all ranks agreed on, reaches further than its caches."""
    sequence = list(range(200))
    running = SimpleNamespace(
        order=4, pass_log=PassLog(((180, 128), (200, 1))), sequence=lambda a, b: sequence[a:b]
    )
    offers = [offer_of_running(running, held, [*sequence[:190], 7]) for held in (0, 128, 200)]  # type: ignore[arg-type]
    assert [offer.position for offer in offers] == [0, 128, 190]
    behind = Holding(4, StageCaches([KVCache()], None))
    behind.caches.position = 128
    with pytest.raises(RingLostError, match="more of a sequence"):
        behind.branch(5, 190, StageCaches([KVCache()], None))


@pytest.mark.parametrize(("available", "kept"), [(500, True), (99, False)])
def test_little_free_memory_keeps_nothing(monkeypatch: pytest.MonkeyPatch, available: int, kept: bool) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1000, available=available))
    holding = Holding(1, StageCaches([], None))
    assert holding.keep([1, 2, 3], PassLog(((2, 128),))) == kept


def test_what_a_finished_request_left_is_examined_until_it_is_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each opening asks of every finished sequence whether it is whole: what nothing writes to is asked once."""
    memory = SimpleNamespace(available=100, total=100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    leaf = KVCache()
    leaf.update_and_fetch(mx.zeros((1, 1, 3, 4)), mx.zeros((1, 1, 3, 4)))
    caches = StageCaches([leaf], None)
    caches.advance(3)
    holding = Holding(1, caches)
    assert holding.keep([1, 2, 3, 4], PassLog())
    assert holding.is_usable  # nothing of it is evaluated yet: it is asked again
    spoiled = {"now": True}
    monkeypatch.setattr(cache_rollback, "is_tainted", lambda _: spoiled["now"])
    assert not holding.is_usable
    spoiled["now"] = False
    mx.eval(caches.arrays())
    assert holding.is_usable
    spoiled["now"] = True  # can no longer be
    assert holding.is_usable
    holding.go_back(2, 2)  # another request writes to it
    assert not holding.is_usable
