"""What the bench of gaps says of a gap: how many of the chunks beside it it lasted."""

from __future__ import annotations

import pytest

from tests.bench.bench_gaps import _in_chunks


def test_a_gap_is_compared_with_the_chunks_beside_it_and_not_with_the_mean() -> None:
    counted = [(0.0, 0.0), *((float(at), at * 4.0) for at in range(1, 11))]  # a chunk takes 0.25 s
    counted += [(10.0 + at, 40.0 + at) for at in range(1, 11)]  # and then a second
    calm = [0.1 * at for at in range(150)]
    assert _in_chunks([*calm, 16.9, 17.0], counted) == pytest.approx(2.0), "of a second each"
    assert _in_chunks([0.5, 1.0, 6.0, 6.5, 7.0], counted) == pytest.approx(5.0 / 0.25)
