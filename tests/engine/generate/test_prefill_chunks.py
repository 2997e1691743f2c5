"""How a prefill is cut: enough chunks to fill the pipeline, none that a stage waits for too long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exoengine.generate.prefill_chunks import LARGEST_TOKENS, SMALLEST_TOKENS, chunk_tokens
from exoengine.generate.step_timing import Pace
from exoengine.protocol import StepCosts, SyncSettings

BUDGET_S = 0.5


def share(tokens: int, stages: int) -> float:
    """Of the time that one process takes, where every token costs the same: the stages' passes one after another
    through a pipeline, the largest chunk's again for each stage but one.
    """
    size = chunk_tokens(tokens, stages, 0.0, BUDGET_S)
    return (tokens + (stages - 1) * min(size, tokens)) / (stages * tokens)


def test_two_stages_halve_the_time_of_a_long_prompt_but_for_a_sixteenth() -> None:
    assert share(2048, 2) <= 0.532
    assert all(share(tokens, 2) <= 0.5 * (1 + 1 / 8) for tokens in range(1024, 40_000, 37))


@given(st.integers(1, 300_000), st.integers(2, 8))
def test_filling_and_draining_cost_little_of_any_prompt_that_is_long_enough(tokens: int, stages: int) -> None:
    if tokens >= 8 * 128 * stages:
        assert share(tokens, stages) * stages <= 1 + 1 / 8


def test_a_single_stage_has_nothing_to_overlap() -> None:
    assert chunk_tokens(700, 1, 0.0, BUDGET_S) == LARGEST_TOKENS


@given(st.integers(1, 300_000), st.integers(1, 8), st.floats(1e-6, 1.0))
def test_no_chunk_is_predicted_to_take_longer_than_the_budget(tokens: int, stages: int, token_s: float) -> None:
    size = chunk_tokens(tokens, stages, token_s, BUDGET_S)
    assert size <= chunk_tokens(tokens, stages, 0.0, BUDGET_S)
    assert size * token_s <= BUDGET_S or size == SMALLEST_TOKENS
    assert size & (size - 1) == 0


def test_the_first_chunk_after_a_load_is_cut_by_what_the_load_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as if a slow machine were a fast one: the first short prompt would hold up whoever streams."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace = Pace(SyncSettings(), StepCosts(token_s=0.05, chunk_s=128 * 0.05))
    pace.opened(0)
    assert chunk_tokens(100, 1, pace.chunk_token_s, BUDGET_S, beside=True) == SMALLEST_TOKENS
    for end in (32, 64):
        now += 32 * 0.001
        pace.chunk(end)
    assert chunk_tokens(100, 1, pace.chunk_token_s, BUDGET_S, beside=True) > SMALLEST_TOKENS


def test_the_pace_is_that_of_chunks_behind_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace = Pace(SyncSettings())
    pace.opened(0)
    for end, took_s in ((128, 0.9), (256, 0.4), (384, 5.0)):  # filling the pipeline; a chunk; a chunk held up
        now += took_s
        pace.chunk(end)
        if end == 128:
            assert pace.chunk_token_s == 0.0
    assert pace.chunk_token_s == pytest.approx(0.4 / 128)
    now += 3.0
    pace.chunk(None)  # run again after a fault
    now += 3.0
    pace.chunk(512)
    assert pace.chunk_token_s == pytest.approx(0.4 / 128)
