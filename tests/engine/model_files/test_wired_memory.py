"""How much a rank wires."""

from __future__ import annotations

import pytest

from exoengine.model_files.wired_memory import HEADROOM_BYTES, wired_limit

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
