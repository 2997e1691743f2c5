"""Caches that overwrite what they hold go back to where they were, over several steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exoengine.model.cache_rollback import STEPS_KEPT, StageCaches
from exoengine.model.loading import load
from exoengine.model.stages import Stage
from exoengine.protocol import Load, SyncSettings
from tests.engine.architectures import SLIDING, WITH_UNUSUAL_CACHES
from tests.engine.models import LLAMA, write_model

PROMPT = [7 * index % 250 for index in range(40)]
"""Longer than the windows of these models."""


def stepped(stage: Stage, caches: StageCaches, tokens: list[int]) -> list[float]:
    """The logits after `tokens`, which go through in one pass."""
    caches.mark(len(tokens))
    logits = stage.run(mx.array([tokens]), None, caches).out
    mx.eval(logits, caches.arrays())
    last: list[float] = logits[0, -1].tolist()
    return last


@pytest.mark.parametrize(
    "config", [*SLIDING, *WITH_UNUSUAL_CACHES[1:]], ids=lambda config: str(config["model_type"])
)
def test_steps_that_are_run_again_see_what_they_saw(config: dict[str, Any], tmp_path: Path) -> None:
    layers = int(config.get("num_hidden_layers") or config["num_layers"])
    stage = load(
        Load(str(write_model(tmp_path / "model", config)), 0, layers, SyncSettings()), lambda *_: None
    ).stage
    caches = stage.new_caches()
    stepped(stage, caches, PROMPT)
    for token in range(8):
        stepped(stage, caches, [token])
    tokens = list(range(50, 50 + STEPS_KEPT))
    first = [stepped(stage, caches, [token]) for token in tokens]
    position = caches.position
    for back in (1, 2, STEPS_KEPT):
        assert caches.can_roll_back(position - back)
        caches.roll_back(position - back)
        assert [stepped(stage, caches, [token]) for token in tokens[-back:]] == first[-back:]


@pytest.mark.parametrize("config", [LLAMA, *WITH_UNUSUAL_CACHES], ids=lambda config: str(config["model_type"]))
def test_a_pass_that_failed_between_two_layers_was_none(config: dict[str, Any], tmp_path: Path) -> None:
    layers = int(config.get("num_hidden_layers") or config["num_layers"])
    stage = load(
        Load(str(write_model(tmp_path / "model", config)), 0, layers, SyncSettings()), lambda *_: None
    ).stage
    stage.cut_between_layers()
    caches = stage.new_caches()
    stepped(stage, caches, PROMPT)
    expected = stepped(stage, caches, [5])
    caches.roll_back(len(PROMPT))
    caches.mark(1)
    seen = []

    def fail_at_the_second(hidden: Any) -> None:
        mx.eval(hidden)
        seen.append(hidden)
        if len(seen) == 2:
            raise RuntimeError("the test fails it")

    with pytest.raises(RuntimeError, match="the test fails it"):
        stage.run(mx.array([[6]]), None, caches, fail_at_the_second)
    assert caches.can_roll_back(len(PROMPT))
    caches.roll_back(len(PROMPT))
    assert stepped(stage, caches, [5]) == expected
