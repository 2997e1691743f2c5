"""An operation that fails inside a graph, whichever it is: the step is refused, and MLX raises nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine.protocol import Aborted, Loaded, SyncSettings
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import undisturbed

PROMPT = list(range(5, 45))
STEPS = 100
FAULTS = [(operation, rank) for operation in ("send", "recv") for rank in range(3)]
"""Of three ranks' graphs all there are: a hidden state or a token, received first and sent last."""

APART = 12
"""So many steps lie between a fault and the next one."""

FAILS = f"""
import sys
import mlx.core as mx
from exoengine.ring.group import RingGroup
made, make = [], RingGroup._make_native
def remember(self, *args):
    make(self, *args)
    made.append(self._control)
RingGroup._make_native = remember
rank = int(sys.argv[2][-6])
def failing(original, at):
    left = [at]
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            made[-1].abort()
        return original(*args, **kwargs)
    return call
mx.distributed.send = failing(mx.distributed.send, {APART} * (1 + rank))
mx.distributed.recv = failing(mx.distributed.recv, {APART} * (4 + rank))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("failing"), 3, prelude=FAILS) as made:
        yield made


def test_each_operation_of_each_rank_fails_in_turn_and_no_token_is_wrong(ranks: Cluster, llama: Path) -> None:
    assert all(isinstance(said, Loaded) for said in ranks.load(llama, [2, 2, 1], SyncSettings(sync="fast")))
    ranks.form()
    asked = request(PROMPT, STEPS)
    ranks.begin(asked)
    for operation, rank in FAULTS:
        said = ranks.ranks[rank].expect(Aborted)
        wanted = ("peer_lost", "an operation inside a graph failed: aborted")
        assert (said.code, said.text) == wanted, operation
        for other in ranks.ranks[:rank] + ranks.ranks[rank + 1 :]:
            assert other.expect(Aborted).code == "peer_lost"
        ranks.form()
    for answer in ranks.finish(asked.request_id):
        assert isinstance(answer, Answer)
        assert answer.tokens == undisturbed(llama, PROMPT, STEPS)
