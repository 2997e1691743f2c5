"""What a modelled worker needs of the simulation that it lives in.

Two simulations have such workers: the joint one of mesh and engine (`joint_world.py`), and the one that runs the
real driver of the engine on a virtual event loop (`tests/core/engine/engine_world.py`). Both are `Surroundings`, so
one worker and one group serve both. Times are in seconds of the simulation.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from exod.model import NodeId
from exoengine.protocol import Begin, GenerationRequest, Prepare

if TYPE_CHECKING:
    from tests.sim.engine.groups import GroupKey, Rendezvous
    from tests.sim.engine.worker import Worker


class Witness(Protocol):
    """Is told what workers do, and judges it."""

    def died(self) -> None: ...
    def hung(self) -> None:
        """A step passed its deadline."""

    def begun(self, node: NodeId, begin: Begin, is_known: bool) -> None: ...
    def opened(self, order: int, requests: list[GenerationRequest]) -> None: ...
    def arrived(self, node: NodeId, prepare: Prepare) -> None: ...
    def formed(self, key: GroupKey, workers: list[Worker]) -> None: ...


class Surroundings(Protocol):
    @property
    def now(self) -> float: ...
    @property
    def engine_rng(self) -> random.Random: ...
    @property
    def load_s(self) -> tuple[float, float]: ...
    @property
    def rendezvous(self) -> Rendezvous: ...
    @property
    def witness(self) -> Witness: ...

    def after(self, delay: float, call: Callable[..., None], *arguments: Any) -> None: ...
    def note(self, node: NodeId | None, text: str) -> None:
        """A line of the story, about a node or about none in particular."""

    def port_is_taken(self, node: NodeId, port: int) -> bool:
        """Does another process of that machine hold the port?"""

    def is_unreadable(self, node: NodeId) -> bool:
        """Can the node's disk not be read, so that a load fails?"""

    def group_carries(self, key: GroupKey, ways: list[tuple[str, str]]) -> bool:
        """Do all connections of a group get something through?"""

    def has_lost_address(self, ways: list[tuple[str, str]]) -> bool: ...
    def ring_delay_s(self, ways: list[tuple[str, str]]) -> float: ...
