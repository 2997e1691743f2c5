"""What a stage evaluates, and when: nothing of what waits for a peer before its input is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exoengine.caches import StageCaches, is_pending
from exoengine.course import SINGLY
from exoengine.group import RingGroup
from exoengine.loading import load
from exoengine.pipeline import Pipeline
from exoengine.protocol import Load, Sampling, SyncSettings
from exoengine.sampling import Sampler
from exoengine.stages import Stage
from exoengine.steps import Step
from tests.engine.models import LLAMA, VOCAB, write_model

DBRX = {
    "model_type": "dbrx", "vocab_size": VOCAB, "d_model": 64, "n_layers": 2, "n_heads": 4,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
}  # fmt: skip


def stage_of(folder: Path, first: int, last: int) -> Stage:
    return load(Load(str(folder), first, last, SyncSettings()), lambda *_: None).stage


def stepped(pipeline: Pipeline, caches: StageCaches) -> None:
    """A safe step of decode."""
    step = Step(0, caches.position, 1, SINGLY, 0, True, 0)
    sampler = Sampler(Sampling(), VOCAB)
    pipeline.run(step, [5], caches, sampler, [5], -1, True)


def test_caches_have_not_seen_an_input_that_failed_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(write_model(tmp_path / "model", LLAMA), 3, 5)
    caches = stage.new_caches()
    pipeline = Pipeline(stage, RingGroup.__new__(RingGroup), 1, None, lambda: None)
    monkeypatch.setattr(Pipeline, "_receive", lambda *_: mx.ones((1, 1, 64)))
    stepped(pipeline, caches)
    before = caches.arrays()
    monkeypatch.setattr(Pipeline, "_receive", lambda *_: lost(tmp_path))
    with pytest.raises(RuntimeError):
        stepped(pipeline, caches)
    assert caches.position == 1
    assert all(one is other for one, other in zip(caches.arrays(), before, strict=True))
    assert caches.can_roll_back(1)


def lost(place: Path) -> Any:
    """An array that cannot be evaluated: what it was to be read from is gone."""
    file = place / "lost.safetensors"
    mx.save_safetensors(str(file), {"hidden": mx.ones((1, 1, 64))})
    array = mx.load(str(file))["hidden"]
    file.write_bytes(b"")
    return array


def test_only_the_first_stage_begins_while_it_is_built(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", LLAMA)
    early: list[Any] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mx, "async_eval", lambda *arrays: early.append(arrays))
        first = stage_of(folder, 0, 4)
        first.run(mx.array([[5]]), None, first.new_caches())
        assert len(early) == 3  # its layers 1, 2 and 4
        later = stage_of(folder, 3, 5)
        hidden = mx.ones((1, 1, 64)) + 1
        logits = later.run(mx.array([[5]]), hidden, later.new_caches())
        assert len(early) == 3
    assert is_pending([hidden])
    assert is_pending([logits])
    mx.eval(logits)
    assert not is_pending([hidden])


def test_a_model_that_reads_its_own_values_gets_its_input_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name, config, first in (("llama", LLAMA, 3), ("dbrx", DBRX, 1)):
        stage = stage_of(write_model(tmp_path / name, config), first, first + 1 if name == "dbrx" else 5)
        hidden = mx.ones((1, 1, 64)) + 1
        monkeypatch.setattr(Pipeline, "_receive", lambda *_, hidden=hidden: hidden)
        run = Stage.run

        def seen(*args: Any, hidden: Any = hidden, name: str = name, run: Any = run) -> Any:
            order.append(f"{name} built {'before' if is_pending([hidden]) else 'after'} its input came")
            return run(*args)

        with monkeypatch.context() as patched:
            patched.setattr(Stage, "run", seen)
            stepped(Pipeline(stage, RingGroup.__new__(RingGroup), 1, None, lambda: None), stage.new_caches())
    assert order == ["llama built before its input came", "dbrx built after its input came"]
