"""What the engine waits for, as one text for people: the cause before what only waits for it. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from exod.core.engine.engine_messages import RankPhase, RankStatus
from exod.core.engine.group_formation import disagreement
from exod.model import MeshPlan


def waiting_reason(plan: MeshPlan | None, suspended: str, ranks: Sequence[RankStatus | None]) -> str:
    """Empty where the engine runs. `ranks`: for each rank of the plan its status under it, None where unknown."""
    if plan is None:
        return "no mesh is agreed yet"
    if suspended:
        return suspended
    if not plan.model:
        return "no model is loaded"
    if not plan.ring:
        return "no node of the mesh hosts a rank"
    if text := failures(ranks) or disagreement(ranks):
        return text
    waited_for = [status for status in ranks if status is None or status.phase is not RankPhase.FORMED]
    if not waited_for:
        return ""
    # One that says why is the cause; the others wait for it, and may look worse.
    status = next((one for one in waited_for if one is not None and one.text), waited_for[0])
    if status is None:
        return "a rank has not reported under the present plan"
    return f"the rank of {status.sender} is {status.phase}" + f": {status.text}" * bool(status.text)


def failures(ranks: Sequence[RankStatus | None]) -> str:
    """Why ranks of the plan cannot start, on any node: named once where it is the same on all."""
    failed = [status for status in ranks if status is not None and status.has_failed]
    if len(failed) == len(ranks) and len({status.text for status in failed}) == 1:
        return failed[0].text
    return "; ".join(f"{status.sender}: {status.text}" for status in failed)
