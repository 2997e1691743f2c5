"""When `engine.parallel = "auto"` looks at what was measured, and what follows.

Decides, on the coordinator: once for each group that was formed, while nothing is generated and nothing waits, so
never in mid-answer. parallel_forecast.py decides what is faster. What was chosen goes to all with the node's card,
and the next plan follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from exod.core.engine.engine_events import ChooseParallel, EmitEvent, ModelFacts
from exod.core.engine.engine_messages import RankStatus
from exod.core.engine.parallel_forecast import Forecast, Way, choice, forecasts, in_words
from exod.model import MeshPlan, NodeId
from exoengine.model_files.memory_fit import ModelSizes

WORTH_BYTES: Final = 256 << 20
"""A smaller model takes a few milliseconds a token however it is run. What its sums take differs by as much each
time that it is measured, and is not worth another load."""


HELD_S: Final = 5.0
"""A plan is agreed on in less than a second; where it does not come, requests go on in the group that stands."""


def present_way(ranks: Sequence[RankStatus]) -> Way:
    return "tensor" if any(rank.parts > 1 for rank in ranks) else "pipeline"


def next_way(found: Sequence[Forecast], now: Way, sizes: ModelSizes, chosen_before: bool = False) -> Way | None:
    """What `auto` changes to; None where what runs `now` stays."""
    if sum(sizes.layer_bytes) < WORTH_BYTES:
        return None
    return choice(found, now, chosen_before or now == "tensor")


class AutoParallel:
    """`wished` is this node's `engine.parallel`."""

    def __init__(self, wished: str) -> None:
        self.wished = wished
        self._considered: tuple[str, int] | None = None
        """(plan, attempt) of the group whose figures were looked at last."""
        self._chosen: set[tuple[str, tuple[NodeId, ...]]] = set()
        """(model, ranks) that a way was chosen for."""
        self._held, self._held_until = "", 0.0

    def holds(self, plan: MeshPlan | None, now: float) -> bool:
        """Is a request to wait for the plan that follows a choice? Begun now, it would be in mid-answer then."""
        return plan is not None and plan.hash == self._held and now < self._held_until

    def consider(
        self,
        plan: MeshPlan | None,
        attempt: int,
        facts: ModelFacts | None,
        ranks: Sequence[RankStatus],
        now: float,
    ) -> list[ChooseParallel | EmitEvent]:
        """The plan's group stands, and nobody waits for an answer."""
        if plan is None or facts is None or self.wished != "auto" or self._considered == (plan.hash, attempt):
            return []
        found = forecasts(plan, facts.sizes, ranks)
        if not found:
            return []
        self._considered = (plan.hash, attempt)
        key = (plan.model, tuple(sorted(plan.ring)))
        other = next_way(found, present_way(ranks), facts.sizes, key in self._chosen)
        if other is None or other == "alone":
            return []
        self._chosen.add(key)
        self._held, self._held_until = plan.hash, now + HELD_S
        data: dict[str, object] = {"way": other, "reason": in_words(found, other, "auto")}
        return [ChooseParallel(other, *key), EmitEvent("engine.parallel", data)]
