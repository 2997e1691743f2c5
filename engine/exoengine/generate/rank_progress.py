"""How far the ranks are: what each tells the others of it, and what all of them make of it.

In a new group each rank first tells which requests it has not finished. Before a request goes on, each tells its
`Standing`, and all take the longest history that any of them has. Decides: which history is taken. Where each rank
then goes on from, resume.py decides. No MLX.
"""

from __future__ import annotations

from collections.abc import Sequence

from exoengine.generate.prompt_cache import Holding
from exoengine.generate.request import Generation
from exoengine.ring.message_ring import RingLostError, TokenRing, decode, encode
from exoengine.ring.pass_log import Course
from exoengine.ring.step_messages import NO_LIKELIHOOD, Likelihood, Roll, Standing


def unfinished_anywhere(ring: TokenRing, mine: tuple[int, ...]) -> set[int]:
    """The orders that some rank has not finished; `mine` are this rank's. Every rank must call this."""
    return {order for part in ring.gather(encode(Roll(mine))) for order in decode(part, Roll).orders}


def standing_of(generation: Generation, holding: Holding | None) -> Standing:
    """This rank's. `holding` is of this request, or of an earlier one that may begin alike."""
    course, position = generation.course or Course(), 0
    if holding is not None and holding.order == generation.order:
        position = holding.caches.position
    elif holding is not None and generation.course is None:
        position, course = holding.common(generation.prompt)
    return Standing(
        order=generation.order,
        request_id=generation.request.request_id,
        tokens=tuple(generation.tokens),
        likelihoods=tuple(generation.likelihoods),
        cancelled=generation.cancelled or generation.finished == "cancelled",
        started=generation.course is not None,
        cached_tokens=generation.cached_tokens,
        course=course,
        position=position,
        can_trim=holding is not None and holding.caches.can_trim,
        marks=holding.caches.marks if holding is not None and position else (),
        sent_tokens=min(holding.sent.length, position) if holding is not None else 0,
    )


def gather(ring: TokenRing, mine: Standing) -> list[Standing]:
    """Every rank's, by rank; every rank must call this. Raises RingLostError."""
    standings = [decode(part, Standing) for part in ring.gather(encode(mine))]
    if any((other.order, other.request_id) != (mine.order, mine.request_id) for other in standings):
        raise RingLostError("the ranks know different requests by the same order")
    return standings


def history(standings: Sequence[Standing]) -> tuple[tuple[int, ...], tuple[Likelihood, ...]] | None:
    """The longest answer that any rank has, and what the ranks together know of its tokens' likelihoods. None where
    the ranks know different answers.
    """
    longest = max((standing.tokens for standing in standings), key=len)
    if any(longest[: len(standing.tokens)] != standing.tokens for standing in standings):
        return None
    known = [NO_LIKELIHOOD] * max(len(standing.likelihoods) for standing in standings)
    for standing in standings:
        for index, likelihood in enumerate(standing.likelihoods):
            if likelihood.logprob is not None:
                known[index] = likelihood
    return longest, tuple(known)
