"""A draw reads and writes within the logits, whatever a client named."""

from __future__ import annotations

import mlx.core as mx

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
