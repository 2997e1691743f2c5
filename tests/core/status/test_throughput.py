"""Low throughput is told after it has lasted, and no sooner; what is compared is comparable."""

from __future__ import annotations

import msgspec

from exod.core.status.throughput import (
    LOW_S,
    MAX_BASELINES,
    NEW_NORMAL_S,
    Baseline,
    ThroughputWatch,
    Workload,
    band_of,
    low_text,
)

ALONE = Workload("m", "a: 1-8, b: 9-16", "fast", 4_096, 1)


def run(
    watch: ThroughputWatch, rate: float, seconds: float, start: float, setting: Workload | None = ALONE
) -> float:
    for second in range(int(seconds)):
        watch.observe(setting, rate, start + second)
    return start + seconds


def learned(rate: float = 100.0) -> ThroughputWatch:
    return ThroughputWatch((Baseline(ALONE, rate),))


def test_under_half_for_thirty_seconds_is_low_and_not_before() -> None:
    watch = learned()
    now = run(watch, 40.0, LOW_S - 4, 0.0)
    assert watch.low is None
    run(watch, 40.0, 5, now)
    assert watch.low is not None
    assert (watch.low.tokens_per_s, watch.low.baseline_tokens_per_s) == (40.0, 100.0)


def test_a_dip_of_some_seconds_is_nothing() -> None:
    watch = learned()
    now = run(watch, 100.0, 40, 0.0)
    now = run(watch, 5.0, 12, now)
    run(watch, 100.0, 40, now)
    assert watch.low is None


def test_it_is_cleared_at_seventy_percent_and_not_at_sixty() -> None:
    watch = learned()
    now = run(watch, 40.0, 40, 0.0)
    now = run(watch, 60.0, 60, now)
    assert watch.low is not None
    run(watch, 75.0, 60, now)
    assert watch.low is None


def test_the_best_ten_seconds_are_learned_and_outlive_a_restart() -> None:
    watch = ThroughputWatch()
    now = run(watch, 50.0, 60, 0.0)
    run(watch, 90.0, 20, now)
    (baseline,) = ThroughputWatch(watch.baselines).baselines
    assert baseline == Baseline(ALONE, 90.0)
    assert msgspec.json.decode(msgspec.json.encode(baseline), type=Baseline) == baseline


def test_another_setting_has_its_own_baseline() -> None:
    """Safe steps, a longer context or more sequences are no fault of the machine."""
    for other in (
        msgspec.structs.replace(ALONE, mode="safe"),
        msgspec.structs.replace(ALONE, band=band_of(10_000)),
        msgspec.structs.replace(ALONE, sequences=4),
        msgspec.structs.replace(ALONE, plan="a: 1-16"),
    ):
        watch = learned()
        run(watch, 30.0, 60, 0.0, other)
        assert watch.low is None, other


def test_seconds_without_decoding_say_nothing() -> None:
    watch = learned()
    now = run(watch, 40.0, 20, 0.0)
    now = run(watch, 0.0, 100, now, None)
    now = run(watch, 40.0, 20, now)
    assert watch.low is None, "two short stretches are not a long one"
    now = run(watch, 40.0, 20, now)
    assert watch.low is not None
    run(watch, 40.0, 3600, now, None)
    assert watch.low is not None, "nothing has shown that it is over"


def test_an_hour_of_decoding_makes_it_the_new_baseline() -> None:
    watch = learned()
    now = run(watch, 40.0, 40, 0.0)
    now = run(watch, 40.0, NEW_NORMAL_S - 60, now)
    assert watch.low is not None
    now = run(watch, 40.0, 120, now)
    assert watch.low is None
    assert watch.baselines == (Baseline(ALONE, 40.0),)
    run(watch, 40.0, 60, now)
    assert watch.low is None


def test_the_baselines_are_bounded_and_the_oldest_goes() -> None:
    watch = learned()
    for count in range(MAX_BASELINES):
        run(watch, 10.0, 12, 1000.0 * (count + 1), msgspec.structs.replace(ALONE, sequences=count + 2))
    assert len(watch.baselines) == MAX_BASELINES
    assert ALONE not in {one.setting for one in watch.baselines}


def test_the_text_has_the_figures_and_the_cause() -> None:
    watch = learned()
    run(watch, 40.0, 40, 0.0)
    assert watch.low is not None
    assert low_text(watch.low, ("studio1–studio2 runs over Wi-Fi en1 at 9.1 ms",)) == (
        "40 tokens/s, less than half of the 100 that this plan reached before with 1 sequence and fast steps: "
        "studio1–studio2 runs over Wi-Fi en1 at 9.1 ms"
    )
    assert "nothing else is known" in low_text(watch.low, ())
