"""What counts as progress of a request, and what is only the same once more."""

from __future__ import annotations

from exod.core.engine.request_progress import LONGEST_LOOK_S, RequestProgress
from tests.core.engine.engine_samples import A, B

EDGES, OTHERS = ("a--b", "b--a"), ("c--d", "d--c")


def stalled(progress: RequestProgress, seconds: float, since: float, others_move: bool = False) -> float:
    """Looks twice a second for so long; gives when it ended."""
    at = since
    while at < since + seconds:
        at += 0.5
        progress.look(at, others_move)
    return at


def test_a_request_stands_still_from_its_last_new_position_on() -> None:
    progress = RequestProgress(0.0)
    at = stalled(progress, 5.0, 0.0)
    progress.heard(A, 10)
    progress.look(at, False)
    assert progress.stalled_s == 0.0
    stalled(progress, 7.0, at)
    assert progress.stalled_s == 7.0


def test_forming_again_and_again_resets_nothing() -> None:
    progress = RequestProgress(0.0)
    at = 0.0
    progress.heard(A, 40)
    progress.look(at, False)
    for _ in range(10):
        for position in (0, 20, 40):  # taken back, and run again
            progress.heard(A, position)
            at = stalled(progress, 2.0, at)
    assert progress.stalled_s >= 9 * 6.0


def test_a_long_prompt_that_a_new_process_prefills_again_is_progress() -> None:
    progress = RequestProgress(0.0)
    progress.heard(A, 5_000)
    progress.heard(B, 5_000)
    at = 0.0
    for position in range(0, 5_000, 500):
        progress.heard(B, position)
        progress.heard(A, 5_000)
        at = stalled(progress, 3.0, at)
        assert progress.stalled_s <= 3.0


def test_what_died_halfway_twice_must_get_further_each_time() -> None:
    progress = RequestProgress(0.0)
    progress.heard(A, 100)
    progress.look(0.0, False)
    for at, position in enumerate((0, 50, 0, 40)):
        progress.heard(A, position)
        progress.look(at + 1.0, False)
    assert progress.stalled_s == 2.0
    progress.heard(A, 60)
    progress.look(5.0, False)
    assert progress.stalled_s == 0.0


def test_one_that_has_not_begun_waits_for_others_and_stands_still_with_them() -> None:
    progress = RequestProgress(0.0)
    at = stalled(progress, 30.0, 0.0, others_move=True)
    assert progress.stalled_s == 0.0
    stalled(progress, 3.0, at)
    assert progress.stalled_s == 3.0


def test_a_pause_of_the_daemon_itself_counts_little() -> None:
    progress = RequestProgress(0.0)
    progress.look(600.0, False)
    assert progress.stalled_s == LONGEST_LOOK_S


def test_a_step_that_hung_twice_is_not_tried_on_the_same_edges_again() -> None:
    progress = RequestProgress(0.0)
    progress.heard(A, 40)
    progress.hung(EDGES)
    assert not progress.must_not_try(EDGES)
    for position in (38, 40):  # the next group ran again what it had
        progress.heard(A, position)
    progress.hung(EDGES)
    assert progress.must_not_try(EDGES)
    assert not progress.must_not_try(OTHERS)


def test_a_new_position_makes_the_next_hang_the_first() -> None:
    progress = RequestProgress(0.0)
    progress.hung(EDGES)
    progress.heard(A, 1)
    progress.hung(EDGES)
    assert not progress.must_not_try(EDGES)
