"""The shape of a forecast in reports. Nothing in it changes."""

from __future__ import annotations

from typing import Literal

import msgspec


class ForecastLine(msgspec.Struct, frozen=True):
    """One way of running the model, predicted from what its ranks measured, for a short context."""

    way: Literal["alone", "pipeline", "tensor"]
    token_ms: float
    prefill_ms: float
    """Of a prompt of 1,024 tokens."""
    runs: bool
    """Is it the present one?"""
    text: str = ""
    """Why it cannot be; which node is meant by `alone`."""
    measured_token_ms: float | None = None
    """Of the present one, by its last answer."""
    error: float | None = None
    """How far the prediction is from that: 0.1 is 10% more than measured."""
