"""How long requests wait in the queue is counted once each, in buckets that add up."""

from __future__ import annotations

import math

from exod.core.engine.queue_times import MOST_WAITING, WAIT_BUCKETS_S, QueueTimes


def counted(times: QueueTimes) -> dict[float, int]:
    return dict(times.cumulative)


def test_each_request_that_is_begun_counts_once() -> None:
    times = QueueTimes()
    for request_id, at in (("a", 0.0), ("b", 0.0), ("c", 0.0), ("a", 5.0)):
        times.queued(request_id, at)
    times.begun("a", 0.05)
    times.begun("a", 9.0)
    times.begun("b", 7.0)
    times.begun("c", 1000.0)
    times.begun("never seen", 1.0)
    assert counted(times)[0.1] == 1
    assert counted(times)[10.0] == 2
    assert counted(times)[math.inf] == 3
    assert times.total_s == 1007.05


def test_one_that_leaves_the_queue_does_not_count() -> None:
    times = QueueTimes()
    times.queued("a", 0.0)
    times.left("a")
    times.begun("a", 1.0)
    assert counted(times)[math.inf] == 0


def test_what_is_kept_is_bounded() -> None:
    times = QueueTimes()
    for number in range(MOST_WAITING + 5):
        times.queued(str(number), 0.0)
    times.begun("0", 1.0)
    times.begun(str(MOST_WAITING), 1.0)
    assert counted(times)[math.inf] == 1
    assert WAIT_BUCKETS_S[-1] == math.inf
