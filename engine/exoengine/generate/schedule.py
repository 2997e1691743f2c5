"""Which sequence's step rank 0 sends next, so that every stage is busy and no request waits long.

Steps of several sequences are under way at once: while one stage runs a step of one, the next stage runs a step of
another. Decode steps and chunks of prefills alternate: between two chunks each answer that decodes gets its step,
so its longest gap is that of two chunks. With each stage beyond the second, one more chunk may be under way, or the
stages would wait for each other.

Decides only the next sequence, from the fields of each `Work`. Pure: no MLX, no clock.
"""

from __future__ import annotations

from collections.abc import Collection

from exoengine.generate.active_request import CHUNKS_AHEAD, Work


def next_work(works: Collection[Work], stages: int) -> Work | None:
    """The request whose step is sent next; None where an outcome must come first."""
    free = [work for work in works if work.can_go_on]
    begun = next((work for work in works if work.has_begun_ahead), None)
    if begun is not None:
        return begun if begun in free else None  # its stage is at work on it already
    if sum(work.outstanding for work in works) >= max(CHUNKS_AHEAD, stages + 1):
        return None
    decoding = [work for work in free if work.is_decoding]
    due = [work for work in decoding if work.overtaken]
    if due:
        return _longest_waiting(due)
    chunks = [work for work in free if not work.is_decoding]
    overtaken = max((work.overtaken for work in works if work.is_decoding), default=0)
    if chunks and overtaken < max(1, stages - 1):
        return _longest_waiting(chunks)
    return _longest_waiting(decoding) if decoding else None


def note_said(work: Work, works: Collection[Work]) -> None:
    """Counts a step of `work` that is sent now."""
    if not work.is_decoding:
        for other in works:
            other.overtaken += other is not work
    work.overtaken = 0
    work.said_at = max(other.said_at for other in works) + 1


def others_decode(work: Work, works: Collection[Work]) -> bool:
    """Would a long chunk of `work` hold up an answer?"""
    return any(other.is_decoding for other in works if other is not work)


def _longest_waiting(works: Collection[Work]) -> Work:
    return min(works, key=lambda work: (work.said_at, work.generation.order))
