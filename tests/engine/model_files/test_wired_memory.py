"""How much a rank wires, and which share is refused, tried with a warning, or taken."""

from __future__ import annotations

import pytest

from exoengine.model_files.wired_memory import HEADROOM_BYTES, Fit, judge_fit, wired_limit

GIB = 1 << 30


@pytest.mark.parametrize(
    ("recommended", "needed", "wired"),
    [
        (0, 4 * GIB, 0),
        (10 * GIB, 4 * GIB, 4 * GIB + HEADROOM_BYTES),
        (10 * GIB, 10 * GIB - 1, 10 * GIB),
        (10 * GIB, 80 * GIB, 10 * GIB),
    ],
    ids=["no such GPU", "what it needs", "near the limit", "never more than recommended"],
)
def test_a_rank_wires_what_it_needs_up_to_what_is_recommended(recommended: int, needed: int, wired: int) -> None:
    assert wired_limit(recommended, needed) == wired


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
