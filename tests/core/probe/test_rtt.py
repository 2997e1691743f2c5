"""The estimator: errors are positive, so the floor holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from exod.core.probe.rtt import FLOOR_SAMPLES, P90_SAMPLES, RttEstimator


@given(st.lists(st.floats(0.0, 1_000.0), min_size=1, max_size=200))
def test_floor_and_p90_are_those_of_the_newest_samples(samples: list[float]) -> None:
    rtt = RttEstimator(5.0)
    for place, sample in enumerate(samples):
        rtt.add(sample, float(place))
    assert rtt.floor_ms == min(samples[-FLOOR_SAMPLES:])
    ordered = sorted(samples[-P90_SAMPLES:])
    assert rtt.p90_ms is not None
    assert sum(one <= rtt.p90_ms for one in ordered) >= 0.9 * len(ordered)
    assert rtt.cost_ms is not None
    assert rtt.floor_ms is not None
    assert rtt.floor_ms <= rtt.cost_ms


@given(st.lists(st.floats(0.0, 10.0), max_size=100))
def test_the_streak_counts_slow_samples_in_a_row(samples: list[float]) -> None:
    rtt = RttEstimator(5.0)
    streak = 0
    for sample in samples:
        rtt.add(sample, 0.0)
        streak = streak + 1 if sample > 5.0 else 0
    assert rtt.slow_streak == streak
    assert (rtt.slow_since is not None) is (streak > 0)


def test_a_negative_sample_is_a_broken_stamp() -> None:
    rtt = RttEstimator(5.0)
    rtt.add(-0.1, 1.0)
    assert rtt.floor_ms is None
    assert rtt.age_s(2.0) is None


def test_noise_above_never_moves_the_floor() -> None:
    rtt = RttEstimator(5.0)
    for place in range(100):
        rtt.add(0.4 if place % FLOOR_SAMPLES == 0 else 400.0, float(place))
        assert rtt.floor_ms == 0.4
