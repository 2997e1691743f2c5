"""The policy of dynamic safe sync, without MLX and without a clock."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest

from exoengine.generate.sync_mode import CALM_STEPS, WAIT_SHARE, SyncPolicy, WatchdogModel, graph_wait_s
from exoengine.protocol import SyncSettings

CONTEXT = 100


def measured(policy: SyncPolicy, *graphs_s: float) -> list[bool]:
    """After each step's measurement, whether the next one is to be safe."""
    choices = []
    for graph_s in graphs_s:
        policy.observe(graph_s)
        choices.append(policy.choose(CONTEXT).safe)
    return choices


def test_the_first_step_is_safe_and_a_short_one_makes_the_next_fast() -> None:
    policy = SyncPolicy(SyncSettings())
    assert policy.choose(CONTEXT).safe
    assert measured(policy, 0.02) == [False]


def test_a_stage_that_takes_three_seconds_is_never_waited_for_by_a_gpu() -> None:
    policy = SyncPolicy(SyncSettings(watchdog_s=2.0))
    policy.choose(CONTEXT)
    assert all(measured(policy, *[3.0] * 50))


def test_a_wait_that_grows_is_safe_long_before_the_watchdogs_limit() -> None:
    policy = SyncPolicy(SyncSettings(watchdog_s=2.0))
    policy.choose(CONTEXT)
    wait_s, safe = 0.01, False
    while not safe:
        wait_s *= 1.02
        policy.observe(wait_s)
        safe = policy.choose(CONTEXT).safe
    assert wait_s < 2.0 / 4


@pytest.mark.parametrize("sync", ["fast", "safe", "dynamic"])
def test_where_graphs_cannot_wait_every_step_is_safe(sync: Literal["fast", "safe", "dynamic"]) -> None:
    policy = SyncPolicy(SyncSettings(sync=sync))
    policy.forbid_fast("the native group is not ready")
    assert all(measured(policy, *[0.001] * 50))
    assert policy.reason_of(safe=True) == "the native group is not ready"


@pytest.mark.parametrize("sync", ["fast", "dynamic"])
def test_where_safe_steps_are_faster_only_a_configured_mode_is_fast(sync: Literal["fast", "dynamic"]) -> None:
    policy = SyncPolicy(SyncSettings(sync=sync))
    policy.prefer_safe("a safe step takes less time")
    assert measured(policy, *[0.001] * 50) == [sync == "dynamic"] * 50
    assert (policy.reason_of(safe=True) == "a safe step takes less time") == (sync == "dynamic")
    policy.prefer_safe("")
    assert not measured(policy, *[0.001] * 50)[-1]


@pytest.mark.parametrize("settings", [SyncSettings(sync="fast"), SyncSettings(sync="safe")])
def test_a_configured_mode_is_kept(settings: SyncSettings) -> None:
    policy = SyncPolicy(settings)
    policy.set_link(False, "lossy")
    assert measured(policy, 0.01, 30.0, 0.01) == [settings.sync == "safe"] * 3
    assert policy.choose(10**6).safe == (settings.sync == "safe")


def test_a_long_context_is_safe_and_says_so() -> None:
    policy = SyncPolicy(SyncSettings(safe_context_tokens=50_000))
    policy.observe(0.01)
    assert not policy.choose(50_000).safe
    choice = policy.choose(50_001)
    assert choice.safe
    assert "50000" in choice.reason
    assert policy.choose(49_000).safe  # still close to the limit


def test_safety_is_left_only_after_calm() -> None:
    policy = SyncPolicy(SyncSettings(watchdog_s=2.0))
    policy.choose(CONTEXT)
    assert measured(policy, 0.01, 0.9) == [False, True]
    after = measured(policy, *[0.01] * 60)
    back = after.index(False)
    assert back >= CALM_STEPS - 1
    assert not any(after[back:])


def test_waits_around_the_limit_do_not_flap() -> None:
    policy = SyncPolicy(SyncSettings(watchdog_s=2.0))
    policy.choose(CONTEXT)
    choices = measured(policy, *[0.45 if step % 2 else 0.55 for step in range(200)])
    changes = sum(one != other for one, other in itertools.pairwise(choices))
    assert changes <= 1


def test_an_unhealthy_link_is_safe_at_once_and_its_reason_is_told() -> None:
    policy = SyncPolicy(SyncSettings())
    policy.choose(CONTEXT)
    assert measured(policy, 0.01) == [False]
    policy.set_link(False, "the cable is slow")
    policy.observe(0.01)
    choice = policy.choose(CONTEXT)
    assert (choice.safe, choice.reason) == (True, "the cable is slow")


def test_what_was_measured_in_another_group_is_forgotten() -> None:
    policy = SyncPolicy(SyncSettings())
    measured(policy, 0.01)
    policy.forget()
    assert policy.predicted_s is None
    assert policy.choose(CONTEXT).safe


def test_the_watchdog_model_counts_only_what_a_gpu_would_have_waited() -> None:
    model = WatchdogModel(watchdog_s=2.0)
    model.record(waited_s=0.0)  # as every safe step
    assert (model.longest_wait_s, model.violations) == (0.0, 0)
    model.record(waited_s=1.0)
    model.record(waited_s=2.5)
    assert (model.longest_wait_s, model.violations) == (2.5, 1)


def test_a_wait_inside_a_graph_ends_between_what_may_be_predicted_and_the_watchdog() -> None:
    settings = SyncSettings(watchdog_s=2.0)
    assert 2.0 * WAIT_SHARE * 2 < graph_wait_s(settings) < 2.0
    forced = SyncSettings(sync="fast", watchdog_s=2.0)
    assert graph_wait_s(forced) == forced.chunk_deadline_s


def test_a_fast_step_that_waited_too_long_keeps_the_next_groups_steps_safe_for_a_while() -> None:
    policy = SyncPolicy(SyncSettings())
    policy.gave_up_in_a_graph()
    policy.forget()  # the next group
    assert policy.choose(CONTEXT).safe
    choices = measured(policy, *[0.001] * (3 * CALM_STEPS))
    assert all(choices[: CALM_STEPS - 1])
    assert not choices[-1], "a calm machine is fast again"
