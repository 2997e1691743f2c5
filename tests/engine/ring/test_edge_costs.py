"""What a sum over each edge takes, measured when a group is formed: by pairs, and never in a circle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exoengine.measure import step_costs
from exoengine.model.stages import StageGraph
from exoengine.protocol import Loaded
from exoengine.ring.edge_costs import order
from tests.engine.driver import cluster
from tests.engine.models import LLAMA, write_model


@pytest.mark.parametrize("size", range(2, 12))
def test_pairs_that_wait_for_each_other_come_to_an_end(size: int) -> None:
    """Each rank measures its edges in turn; an edge is measured once both of its ranks have come to it."""
    left = {rank: order(rank, size) for rank in range(size)}
    assert all(set(edges) == {(rank - 1) % size, (rank + 1) % size} for rank, edges in left.items())
    while any(left.values()):
        ready = [(rank, edges[0]) for rank, edges in left.items() if edges and left[edges[0]][:1] == [rank]]
        assert ready, left
        for rank, _ in ready:
            left[rank].pop(0)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_measure_their_layers_and_their_edges(tmp_path: Path, size: int) -> None:
    folder = write_model(tmp_path / "model", LLAMA)
    with cluster(tmp_path, size) as group:
        for said in group.load(folder, [3, 2] if size == 2 else [2, 2, 1]):
            assert isinstance(said, Loaded)
            assert said.step_costs.token_s > 0
            assert said.step_costs.chunk_s > 0
        edges = [formed.edge_costs for formed in group.form()]
        assert all(one.small_s > 0 and one.large_s > 0 for one in edges)
        if size == 2:
            parts = group.load_parts(folder, 2, 5)
            assert all(isinstance(said, Loaded) and said.step_costs.token_s > 0 for said in parts)
            group.form()


class SlowStage:
    """A stage whose pass takes so long a token, by a clock of its own."""

    takes, is_last = None, True

    def __init__(self, token_s: float, clock: list[float]) -> None:
        self.token_s, self.clock, self.ran = token_s, clock, list[int]()

    def new_caches(self) -> SlowStage:
        return self

    def arrays(self) -> list[object]:
        return []

    def run(self, tokens: Any, hidden: object, caches: object) -> Any:
        self.ran.append(tokens.shape[1])
        self.clock[0] += self.token_s * tokens.shape[1]
        return StageGraph(mx.zeros((1, tokens.shape[1], 4)), None)


@pytest.mark.parametrize(("token_s", "ran"), [(0.001, [1] * 5 + [128] * 3), (0.1, [1] * 5 + [10]), (3.0, [1, 8])])
def test_a_slow_rank_runs_less_to_measure_itself(
    monkeypatch: pytest.MonkeyPatch, token_s: float, ran: list[int]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(step_costs.time, "perf_counter", lambda: clock[0])
    stage = SlowStage(token_s, clock)
    costs = step_costs.measure(stage)  # type: ignore[arg-type]
    assert stage.ran == ran
    assert (costs.token_s, costs.chunk_s) == pytest.approx((token_s, 128 * token_s))
