"""What the workers of the simulation on a virtual loop find around them, and what is checked of them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from exod.core.engine.engine_messages import client_id
from exod.model import NodeId
from exoengine.protocol import Begin, GenerationRequest, Prepare
from tests.core.engine.virtual_time import VirtualLoop
from tests.sim.engine.groups import GroupKey, Rendezvous, token_at
from tests.sim.engine.worker import Worker


class WorkerSurroundings:
    """One for all workers of a world. Raises AssertionError where they break a rule."""

    def __init__(self, loop: VirtualLoop, rng: Random, story: Callable[[str], None]) -> None:
        self.loop, self.engine_rng, self._story = loop, rng, story
        self.load_s = (0.3, 3.0)
        self.cut_plans: set[str] = set()
        """Plans whose links carry nothing."""
        self.rendezvous = Rendezvous(self)
        self.witness = self
        self.generations: dict[str, set[int]] = {}
        """Client's request -> orders under which ranks opened it."""
        self.most_open = 0
        self._shapes: dict[str, dict[int, tuple[NodeId, int]]] = {}

    @property
    def now(self) -> float:
        return self.loop.time()

    def after(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        self.loop.call_later(delay, call, *arguments)

    def note(self, node: NodeId | None, text: str) -> None:
        self._story(text if node is None else f"{node}: {text}")

    def port_is_taken(self, node: NodeId, port: int) -> bool:
        return False

    def is_unreadable(self, node: NodeId) -> bool:
        return False

    def group_carries(self, key: GroupKey, ways: list[tuple[str, str]]) -> bool:
        return key[0] not in self.cut_plans

    def has_lost_address(self, ways: list[tuple[str, str]]) -> bool:
        return False

    def ring_delay_s(self, ways: list[tuple[str, str]]) -> float:
        return 0.0

    # --- what is checked ---

    def died(self) -> None:
        pass

    def hung(self) -> None:
        pass

    def begun(self, node: NodeId, begin: Begin, is_known: bool) -> None:
        name = begin.request.request_id
        assert not is_known, f"{node}'s worker is given order {begin.order} by another name"
        expected = [token_at(name, index) for index in range(len(begin.tokens))]
        assert list(begin.tokens) == expected, f"{node}'s worker is given tokens of another answer for {name}"

    def opened(self, order: int, requests: list[GenerationRequest]) -> None:
        names = {request.request_id for request in requests}
        assert len(names) == 1, f"ranks know different requests by order {order}: {names}"
        self.generations.setdefault(client_id(requests[0].request_id), set()).add(order)
        assert self.rendezvous.newest is not None
        self.most_open = max(self.most_open, len(self.rendezvous.newest.open))

    def arrived(self, node: NodeId, prepare: Prepare) -> None:
        shape = self._shapes.setdefault(prepare.plan_hash, {})
        known = shape.setdefault(prepare.rank, (node, prepare.size))
        assert known == (node, prepare.size), f"two ranks {prepare.rank} in one plan: {known}, {node}"

    def formed(self, key: GroupKey, workers: list[Worker]) -> None:
        self._story(f"group {key[0]}/{key[1]} stands: {[worker.node for worker in workers]}")
