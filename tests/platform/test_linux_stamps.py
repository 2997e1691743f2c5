"""Kernel stamps of the wall clock, and what clock steps do to them. The clocks are the test's."""

from __future__ import annotations

import pytest

from exod.platform.linux_stamps import WallClockStamps

BOOTED_AT = 1_700_000_000.0


class Clocks:
    def __init__(self) -> None:
        self.monotonic_s = 1000.0
        self.wall_minus_monotonic_s = BOOTED_AT
        self.stamps = WallClockStamps(
            lambda: round((self.monotonic_s + self.wall_minus_monotonic_s) * 1e9),
            lambda: round(self.monotonic_s * 1e9),
        )

    def stamp_ns(self) -> int:
        return round((self.monotonic_s + self.wall_minus_monotonic_s) * 1e9)


def test_a_stamp_is_the_moment_of_arrival_on_the_monotonic_clock() -> None:
    clocks = Clocks()
    stamp_ns = clocks.stamp_ns()
    clocks.monotonic_s += 0.004
    assert clocks.stamps.to_monotonic(stamp_ns, clocks.monotonic_s) == pytest.approx(1000.0, abs=1e-6)


@pytest.mark.parametrize("step_s", [-3600.0, -0.020, -0.002, 0.002, 0.020, 3600.0])
def test_a_stamp_from_before_a_step_is_refused_and_the_next_one_counts(step_s: float) -> None:
    clocks = Clocks()
    before_step_ns = clocks.stamp_ns()
    clocks.monotonic_s += 0.001
    clocks.wall_minus_monotonic_s += step_s
    clocks.monotonic_s += 0.001
    assert clocks.stamps.to_monotonic(before_step_ns, clocks.monotonic_s) is None

    clocks.monotonic_s += abs(step_s) + 0.1
    arrived = clocks.monotonic_s
    after_step_ns = clocks.stamp_ns()
    clocks.monotonic_s += 0.001
    assert clocks.stamps.to_monotonic(after_step_ns, clocks.monotonic_s) == pytest.approx(arrived, abs=1e-6)


@pytest.mark.parametrize("step_s", [-0.020, 0.020])
def test_a_datagram_that_waited_through_a_step_behind_another_is_refused_too(step_s: float) -> None:
    clocks = Clocks()
    first_ns = clocks.stamp_ns()
    clocks.monotonic_s += 0.001
    second_ns = clocks.stamp_ns()
    clocks.wall_minus_monotonic_s += step_s
    clocks.monotonic_s += 0.001
    assert clocks.stamps.to_monotonic(first_ns, clocks.monotonic_s) is None
    clocks.monotonic_s += 0.001
    assert clocks.stamps.to_monotonic(second_ns, clocks.monotonic_s) is None


def test_slewing_is_not_a_step() -> None:
    clocks = Clocks()
    for _ in range(100):
        clocks.wall_minus_monotonic_s += 25e-6  # 500 ppm over 50 ms
        stamp_ns = clocks.stamp_ns()
        arrived = clocks.monotonic_s
        clocks.monotonic_s += 0.05
        assert clocks.stamps.to_monotonic(stamp_ns, clocks.monotonic_s) == pytest.approx(arrived, abs=1e-4)


def test_an_absurd_stamp_is_refused() -> None:
    clocks = Clocks()
    assert clocks.stamps.to_monotonic(0, clocks.monotonic_s) is None
    assert clocks.stamps.to_monotonic(clocks.stamp_ns() + 5_000_000_000, clocks.monotonic_s) is None
