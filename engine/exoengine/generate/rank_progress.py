"""How far the ranks are: what each sends to the others about it, and what all conclude from it.

In a new group each rank first sends which requests it has not finished. Before a request continues, each sends its
`Standing`, and all take the longest history that any of them has. Decides: which history is taken. The position
from which each rank continues is decided in resume.py; `Openings` brings this rank's caches there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from exoengine.generate.active_request import Work
from exoengine.generate.prompt_cache import Holding, Holdings, not_everywhere, offer_of_running
from exoengine.generate.request import Generation
from exoengine.generate.resume import Resumption, resume
from exoengine.model.sampling import Sampler
from exoengine.model_files.kv_room import KvRoom
from exoengine.ring.message_ring import RingLostError, TokenRing, decode, encode
from exoengine.ring.pass_log import PassLog
from exoengine.ring.step_messages import NO_LIKELIHOOD, CachedSequence, Likelihood, Standing, UnfinishedOrders

if TYPE_CHECKING:
    from exoengine.model.loading import LoadedModel


def unfinished_anywhere(ring: TokenRing, mine: tuple[int, ...]) -> set[int]:
    """The orders that some rank has not finished; `mine` are this rank's. Every rank must call this."""
    return {
        order
        for part in ring.gather(encode(UnfinishedOrders(mine)))
        for order in decode(part, UnfinishedOrders).orders
    }


def check_alike(standings: Sequence[Standing]) -> None:
    """Raises RingLostError where the ranks know different requests by the same order."""
    if len({(one.order, one.request_id) for one in standings}) > 1:
        raise RingLostError("the ranks know different requests by the same order")


def history(standings: Sequence[Standing]) -> tuple[tuple[int, ...], tuple[Likelihood, ...]] | None:
    """The longest answer that any rank has, with the likelihoods of its tokens as far as any rank knows them. None
    where the ranks have different answers.
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


def admission(standings: Sequence[Standing]) -> tuple[str, bool]:
    """What the ranks together say of a request that is new: why it can never run, and must it wait?"""
    if any(one.started or one.tokens or one.cancelled for one in standings):
        return "", False
    refusal = next((one.refusal for one in standings if one.refusal), "")
    return refusal, any(one.waits for one in standings)


class Openings:
    """Requests for which this rank has sent its standing and not all others have arrived."""

    def __init__(self, holdings: Holdings, room: KvRoom) -> None:
        self._holdings = holdings
        self._room = room
        self.is_full = False
        """Does the next request wait until another one ends, for its memory?"""
        self._wanted: dict[int, int] = {}
        """By order, the bytes of KV cache that a request is counted with."""
        self._told: dict[int, dict[int, Holding]] = {}
        """By order, the caches that were offered to the request: they are kept as long as they may be chosen."""

    @property
    def orders(self) -> Collection[int]:
        return self._told.keys()

    def forget(self) -> None:
        self._told = {}
        self.is_full = False

    def tell(self, generation: Generation, works: Collection[Work]) -> Standing:
        """This rank's standing. To a new request it offers what its caches hold of others; `works` are open."""
        told = self._told[generation.order] = {}
        offers = []
        if generation.pass_log is None:
            told |= self._holdings.idle()
            offers = [one.offer(generation.prompt) for one in told.values()]
            for work in works:
                if work.holding.caches.can_trim:
                    told[work.generation.order] = work.holding
                    held = work.holding.caches.position
                    offers.append(offer_of_running(work.generation, held, generation.prompt))
        standing = _standing(generation, self._holdings.usable(generation.order), offers)
        refusal, waits = self._admission(generation, works)
        return msgspec.structs.replace(standing, refusal=refusal, waits=waits)

    def _admission(self, generation: Generation, works: Iterable[Work]) -> tuple[str, bool]:
        """Can a request that is new never run on this rank, and why; and must it wait for others?"""
        asked = len(generation.prompt) + len(generation.given), generation.max_tokens - len(generation.given)
        others = {*(work.generation.order for work in works), *self._told} - {generation.order}
        held = sum(wanted for order, wanted in self._wanted.items() if order in others)
        self._wanted = {order: wanted for order, wanted in self._wanted.items() if order in others}
        wanted = self._wanted[generation.order] = self._room.wanted_bytes(*asked)
        if generation.pass_log is not None or generation.tokens:
            return "", False
        return self._room.refusal(*asked), self._room.must_wait(wanted, held)

    def close(self, order: int) -> dict[int, Holding]:
        """What this rank had offered, once all standings are here. Raises RingLostError where it sent none."""
        if order not in self._told:
            raise RingLostError("the ranks opened a request that was not asked for")
        return self._told.pop(order)

    def start(
        self, generation: Generation, standings: Sequence[Standing], rank: int, told: dict[int, Holding],
        model: LoadedModel,
    ) -> Work:  # fmt: skip
        """The request as it continues; this rank's caches are brought there."""
        resumption = resume(standings, len(generation.prompt) - 1, generation.length - 1, model.is_divided)
        holding = self._go_on(generation, standings, resumption, rank, told)
        sampling, size = generation.request.sampling, model.summary.vocab_size
        sampler = Sampler(sampling, size, generation.given, generation.mask)
        start = min(resumption.starts)
        return Work(generation, sampler, holding, resumption, issued=start, done=start)

    def _go_on(
        self, generation: Generation, standings: Sequence[Standing], resumption: Resumption, rank: int,
        told: dict[int, Holding],
    ) -> Holding:  # fmt: skip
        order = generation.order
        generation.pass_log, generation.cached_tokens = resumption.pass_log, resumption.cached_tokens
        if not any(standing.started for standing in standings):
            self._holdings.drop(not_everywhere(told, (standing.sources for standing in standings)))
        start = resumption.starts[rank]
        if resumption.source is None:
            return self._holdings.go_on(order, start)
        return self._holdings.begin_from(told[resumption.source], order, start)


def _standing(generation: Generation, holding: Holding | None, sources: Sequence[CachedSequence]) -> Standing:
    """This rank's standing. `holding` is this request's; `sources` is what others' caches offer to a new one."""
    return Standing(
        order=generation.order,
        request_id=generation.request.request_id,
        tokens=tuple(generation.tokens),
        likelihoods=tuple(generation.likelihoods),
        cancelled=generation.cancelled or generation.finished == "cancelled",
        started=generation.pass_log is not None,
        cached_tokens=generation.cached_tokens,
        pass_log=generation.pass_log or PassLog(),
        position=holding.caches.position if holding is not None else 0,
        can_trim=holding is not None and holding.caches.can_trim,
        marks=holding.caches.marks if holding is not None else (),
        sent_tokens=min(holding.sent.length, holding.caches.position) if holding is not None else 0,
        sources=tuple(sources),
        alone=generation.alone,
    )
