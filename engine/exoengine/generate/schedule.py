"""Which sequences' steps rank 0 sends next, so that every stage is busy and no request waits long.

Steps of several sequences are under way at once: while one stage runs a step of some, the next stage runs a step of
others. Sequences that decode go in as many groups as there are stages, of about the same size: each group's next
tokens go through in one pass (a batch), where the model's caches allow it; where they do not, each sequence is a
group. Groups stay as they are while nobody joins or leaves, because bringing caches together costs a copy of them.

Decode steps and chunks of prefills alternate: between two chunks each answer that decodes gets its step, so its
longest gap is that of two chunks. With each stage beyond the second, one more chunk may be under way, or the stages
would wait for each other.

Decides only the next sequence, from the fields of each `Work`. Pure: no MLX, no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from exoengine.generate.active_request import CHUNKS_AHEAD, Work


def next_pass(works: Collection[Work], stages: int, in_batches: bool) -> list[Work]:
    """The requests whose step is sent next, in one pass; empty where an outcome must come first."""
    free = [work for work in works if work.can_go_on]
    begun = [work for work in works if work.has_begun_ahead]
    if begun:  # their stage is at work on it already
        return sorted(begun, key=lambda work: work.generation.order) if all(work in free for work in begun) else []
    if _under_way(works, in_batches) >= max(CHUNKS_AHEAD, stages + 1):
        return []
    decoding = [work for work in free if work.is_decoding]
    due = [work for work in decoding if work.overtaken]
    if due and (group := _group(due, works, stages, in_batches)):
        return group
    chunks = [work for work in free if not work.is_decoding]
    overtaken = max((work.overtaken for work in works if work.is_decoding), default=0)
    if chunks and overtaken < max(1, stages - 1):
        return [_longest_waiting(chunks)]
    return _group(decoding, works, stages, in_batches) if decoding and not due else []


def note_said(said: Sequence[Work], works: Collection[Work]) -> None:
    """Counts a pass of those that is sent now."""
    if not said[0].is_decoding:
        for other in works:
            other.overtaken += other is not said[0]
    at = max(other.said_at for other in works) + 1
    for work in said:
        work.overtaken, work.said_at = 0, at


def others_decode(work: Work, works: Collection[Work]) -> bool:
    """Would a long chunk of `work` hold up an answer?"""
    return any(other.is_decoding for other in works if other is not work)


def _group(free: Sequence[Work], works: Collection[Work], stages: int, in_batches: bool) -> list[Work]:
    """Of the sequences that can decode now the one that waited longest, and with which others it goes; empty where
    as many groups as there are stages are under way.
    """
    first = _longest_waiting(free)
    if not in_batches or not first.can_share:
        return [first]
    sharing = [work for work in works if work.is_decoding and work.can_share and not work.stop]
    if len({work.said_at for work in sharing if work.is_drawing}) >= stages:
        return []
    groups = min(stages, len(sharing))
    least, most = len(sharing) // groups, -(-len(sharing) // groups)
    candidates = sorted((work for work in free if work.can_share), key=_waiting)
    group = [work for work in candidates if work.said_at == first.said_at]
    wanted = most if len({work.said_at for work in sharing}) > groups else least
    if len(group) < wanted:
        others = [work for work in candidates if work.said_at != first.said_at]
        group += others[: wanted - len(group)]
    return sorted(group[:most], key=lambda work: work.generation.order)


def _under_way(works: Collection[Work], in_batches: bool) -> int:
    """How many passes are said whose outcome is not here."""
    if not in_batches:
        return sum(work.outstanding for work in works)
    chunks = sum(work.outstanding for work in works if not work.is_drawing)
    return chunks + len({work.said_at for work in works if work.is_drawing})


def _waiting(work: Work) -> tuple[int, int]:
    return work.said_at, work.generation.order


def _longest_waiting(works: Collection[Work]) -> Work:
    return min(works, key=_waiting)
