"""When a process counts as one that computes."""

from __future__ import annotations

from exoengine.process.processor_watch import LOOK_S, ProcessorWatch


def test_one_that_uses_a_share_of_a_core_computes_and_one_that_waits_does_not() -> None:
    watch = ProcessorWatch(0.0, 10.0)
    assert watch.look(1.0, 10.9)
    assert not watch.look(2.0, 10.905)
    assert watch.look(3.0, 10.965)  # a machine that many share


def test_a_look_that_comes_at_once_does_not_judge_by_a_moment() -> None:
    watch = ProcessorWatch(0.0, 0.0)
    assert watch.look(1.0, 1.0)
    assert watch.look(1.0 + LOOK_S / 2, 1.0)
    assert not watch.look(1.0 + LOOK_S, 1.0)


def test_what_was_used_before_a_step_says_nothing_about_it() -> None:
    """A rank that has just loaded and formed, and then hangs in its first step."""
    watch = ProcessorWatch(0.0, 0.0)
    assert watch.look(1.0, 1.0)
    assert not watch.look(1.5, 1.4, begun=1.45)
    assert not watch.look(1.5 + LOOK_S, 1.4, begun=1.45)
    assert watch.look(1.5 + 2 * LOOK_S, 2.0, begun=1.45)
