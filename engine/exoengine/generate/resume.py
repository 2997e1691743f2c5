"""Where a request goes on when it is opened: at its first opening, and again after each fault.

Every rank has sent how far its caches are, to which positions they can go back, and how much of what it sent
downstream it has kept. The ranks then continue from the furthest position that needs no second computation of what
is known. A rank that is behind (a replaced rank, from the very beginning) catches up by itself; its input is what
the rank before it has kept, or computes then. The others wait.

In a tensor group every rank has its part of every layer and is needed in every step: all continue from the same
position, the furthest that all can reach. After a rank was replaced, all of them run the whole sequence again.

Decides that position, alike on every rank, from the same standings. Pure: no MLX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from exoengine.ring.pass_log import PassLog
from exoengine.ring.step_messages import Standing


@dataclasses.dataclass(frozen=True)
class Resumption:
    starts: tuple[int, ...]
    """For each rank the position that its caches go back to, and from which it takes part in steps."""
    pass_log: PassLog
    """How the known tokens were cut; where they are run again, they are cut alike."""
    cached_tokens: int
    """Of the prompt, that no rank had to run for this request."""
    furthest: int
    """Up to here some rank had run the sequence before: what runs again below it runs because of a fault."""
    source: int | None = None
    """The request whose sequence this one continues; None: its own caches, or none."""

    @property
    def reached(self) -> int:
        """From here on all ranks run every step."""
        return max(self.starts)

    def runs(self, rank: int, start: int) -> bool:
        """Does `rank` run the step at `start`? If not, its caches have these tokens already."""
        return self.starts[rank] <= start

    def pass_end(self, start: int, end: int) -> int:
        """`end`, or where before it the next rank joins in."""
        return min((joins for joins in self.starts if start < joins), default=end) if start < self.reached else end


def resume(standings: Sequence[Standing], prompt_end: int, end: int, together: bool = False) -> Resumption:
    """`prompt_end` is the position of the prompt's last token, `end` that of the last one known. `together`: these
    are the ranks of a tensor group.
    """
    leading = max(standings, key=lambda one: (one.started, one.position))
    if not leading.started:
        return _first_opening(standings, prompt_end)
    pass_log = leading.pass_log
    cached = max(one.cached_tokens for one in standings if one.started)
    furthest = max(one.position for one in standings)
    targets = {end}.union(*((one.position, one.sent_tokens, *one.marks) for one in standings))
    for target in sorted((position for position in targets if position <= end), reverse=True):
        starts = tuple(_place(one, pass_log, target) for one in standings)
        fine = len(set(starts)) == 1 if together else _is_fed(starts, standings)
        if target in starts and fine:
            return Resumption(starts, pass_log, cached, furthest)
    return Resumption((0,) * len(standings), pass_log, cached, furthest)


def _first_opening(standings: Sequence[Standing], prompt_end: int) -> Resumption:
    """From the sequence that shares the longest beginning with the prompt, among those that every rank holds. One
    that some rank lacks is not used: to run it again token by token would take longer than a new prefill.
    """
    told = [{source.order: source for source in one.sources} for one in standings]
    best: tuple[int, int, PassLog] = (0, 0, PassLog())
    for order in set(told[0]).intersection(*told[1:]):
        sources = [one[order] for one in told]
        shared, pass_log = min(prompt_end, *(source.position for source in sources)), sources[0].pass_log
        if (shared, order) > best[:2] and all(source.pass_log.agrees(pass_log, shared) for source in sources):
            best = (shared, order, pass_log)
    shared, order, pass_log = best
    if shared == 0:
        return Resumption((0,) * len(standings), PassLog(), 0, 0)
    return Resumption((shared,) * len(standings), pass_log.up_to(shared), shared, shared, order)


def _place(standing: Standing, pass_log: PassLog, target: int) -> int:
    """The furthest position up to `target` that this rank's caches can reach."""
    reachable = {standing.position, *standing.marks}
    if standing.can_trim and standing.position > target:
        reachable.add(target)
    return max(
        (position for position in reachable if position <= target and standing.pass_log.agrees(pass_log, position)),
        default=0,
    )


def _is_fed(starts: Sequence[int], standings: Sequence[Standing]) -> bool:
    """Does every rank get its input: what the rank before kept up to its own start, and computes from there?"""
    pairs = zip(starts[:-1], starts[1:], standings[:-1], strict=True)
    return all(after >= before or sender.sent_tokens >= before for before, after, sender in pairs)
