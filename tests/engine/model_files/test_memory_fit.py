"""What a span needs, and which share is refused, tried with a warning, or taken."""

from __future__ import annotations

import pytest

from exoengine.model_files.memory_fit import WHOLE_CONTEXT, Fit, ModelSizes, SpanTable, judge_fit


@pytest.mark.parametrize(
    ("needed", "available", "recommended", "fit"),
    [
        (4, 8, 0, Fit.FITS),
        (9, 8, 0, Fit.TOO_SMALL),
        (4, 8, 10, Fit.FITS),
        (9, 8, 10, Fit.UNCERTAIN),
        (11, 8, 10, Fit.TOO_SMALL),
        (11, 20, 10, Fit.TOO_SMALL),
    ],
)
def test_what_mlx_recommends_decides_and_what_is_free_only_warns(
    needed: int, available: int, recommended: int, fit: Fit
) -> None:
    assert judge_fit(needed, available, recommended) is fit


SIZES = ModelSizes(
    layer_bytes=(100, 200, 300, 400),
    other_bytes=51,
    kv_bytes_per_token=16,
    kv_windows=(WHOLE_CONTEXT, 8, WHOLE_CONTEXT, 0),
    max_context_tokens=1000,
)


@pytest.mark.parametrize(
    ("span", "weights", "cache"),
    [
        ((0, 4), 1000 + 51, 16 * (20 + 8 + 20)),
        ((0, 1), 100 + 25, 16 * 20),
        ((1, 3), 500, 16 * (8 + 20)),
        ((3, 4), 400 + 25, 0),
    ],
)
def test_a_span_needs_its_layers_its_end_and_what_each_layer_keeps(
    span: tuple[int, int], weights: int, cache: int
) -> None:
    needs = SpanTable(SIZES, 20).needs(*span)
    assert (needs.weight_bytes, needs.cache_bytes) == (weights, cache)
    assert SpanTable(SIZES, 20).total_bytes(*span) == needs.total_bytes == weights + cache


def test_a_part_of_each_layer_needs_its_share_and_the_whole_of_what_is_in_no_layer() -> None:
    whole, part = SpanTable(SIZES, 20).needs(0, 4), SpanTable(SIZES, 20, parts=2).needs(0, 4)
    assert part.weight_bytes == 500 + 51
    assert part.cache_bytes == whole.cache_bytes // 2


def test_a_context_beyond_the_model_s_own_is_not_counted() -> None:
    assert SpanTable(SIZES, 5000).needs(0, 1).context_tokens == 1000
    assert SpanTable(SIZES).needs(0, 1).cache_bytes == 0
