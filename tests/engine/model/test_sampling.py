"""A draw reads and writes within the logits, whatever a client named; it follows the probabilities, and does not
hang on the last bits of the logits.
"""

from __future__ import annotations

import mlx.core as mx
import pytest

from exoengine.model.sampling import Sampler
from exoengine.protocol import Sampling


def test_a_bias_beyond_the_logits_changes_nothing() -> None:
    biases = {3: 5.0, 10: 50.0, -1: 60.0, 2**40: 70.0}  # logits may be fewer than a config says, or it says nothing
    token, logprobs = Sampler(Sampling(logit_bias=biases), 0).draw(mx.zeros((1, 10)), [1], 0)
    alone, expected = Sampler(Sampling(logit_bias={3: 5.0}), 0).draw(mx.zeros((1, 10)), [1], 0)
    assert token.item() == alone.item() == 3
    assert mx.array_equal(logprobs, expected)
    only = Sampler(Sampling(logit_bias={10: 50.0}), 0)
    assert mx.array_equal(only.draw(mx.zeros((1, 10)), [1], 0)[1], mx.full((1, 10), -mx.log(mx.array(10.0))))


DRAWS = 2000
VOCABULARY = 1010


def _tokens(logits: mx.array, seed: int) -> list[int]:
    sampler = Sampler(Sampling(temperature=1.0, seed=seed), logits.shape[-1])
    return [token for step in range(DRAWS) for token in sampler.draw(logits, [1], step)[0].tolist()]


def test_logits_that_differ_by_their_last_bits_draw_the_same_tokens() -> None:
    """A tensor group adds in another order than a node that goes on alone: mx.random.categorical draws otherwise
    18 times in these.
    """
    logits = mx.random.normal((1, VOCABULARY), key=mx.random.key(1))
    rounded = logits + 1e-3 * mx.random.normal((1, VOCABULARY), key=mx.random.key(2))
    differ = sum(one != other for one, other in zip(_tokens(logits, 3), _tokens(rounded, 3), strict=True))
    assert differ <= 3


def test_tokens_come_as_often_as_they_are_likely() -> None:
    likely = mx.array([[0.5, 0.3, 0.15, 0.05, 0.0]])
    found = _tokens(mx.log(likely), 4)
    assert found.count(4) == 0
    for token, share in enumerate(likely[0].tolist()[:4]):
        deviation = (share * (1 - share) / DRAWS) ** 0.5
        assert abs(found.count(token) / DRAWS - share) < 4 * deviation


def test_the_rarest_draw_lets_no_excluded_token_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX draws minus infinity once in some four thousand million times, and a grammar often leaves one token."""
    monkeypatch.setattr(mx.random, "gumbel", lambda shape, key: mx.full(shape, -mx.inf))
    allowed = mx.array([[-mx.inf, 0.0, -mx.inf]])
    token, _ = Sampler(Sampling(temperature=1.0, seed=3), 3).draw(allowed, [1], 0)
    assert token.tolist() == [1]
