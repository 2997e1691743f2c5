"""What a stage evaluates, and when: nothing of what waits for a peer before its input is here."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exoengine.generate.pipeline import Pass, Pipeline
from exoengine.model.cache_rollback import StageCaches, is_pending
from exoengine.model.loading import load
from exoengine.model.sampling import Sampler
from exoengine.model.stages import Stage
from exoengine.native.module import NativeModule
from exoengine.protocol import Load, Sampling, SyncSettings
from exoengine.ring.group import RingGroup
from exoengine.ring.pass_log import SINGLY
from exoengine.ring.step_messages import Step
from tests.engine.models import LLAMA, VOCAB, undisturbed, write_model

DBRX = {
    "model_type": "dbrx", "vocab_size": VOCAB, "d_model": 64, "n_layers": 2, "n_heads": 4,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
}  # fmt: skip


def stage_of(folder: Path, first: int, last: int) -> Stage:
    return load(Load(str(folder), first, last, SyncSettings()), lambda *_: None).stage


def no_group() -> RingGroup:
    """One that is never formed."""
    return RingGroup(NativeModule.__new__(NativeModule))


def stepped(pipeline: Pipeline, caches: StageCaches) -> None:
    """A safe step of decode."""
    step = Step(0, caches.position, 1, SINGLY, 0, True, 0)
    sampler = Sampler(Sampling(), VOCAB)
    pipeline.run(step, [[5]], caches, lambda logits: sampler.draw(logits, [5], 0), [-1], True, None, lambda: None)


@dataclasses.dataclass
class Awaited:
    """An input that comes when it is evaluated."""

    array: Any
    in_graph: bool = False

    def let_come(self, wait: bool) -> None:
        assert wait is not None
        mx.eval(self.array)

    def sit_out(self) -> None:
        raise AssertionError("no input of a step that is run is given up")


def test_caches_have_not_seen_an_input_that_failed_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(write_model(tmp_path / "model", LLAMA), 3, 5)
    caches = stage.new_caches()
    pipeline = Pipeline(stage, no_group(), 1, 2, None)
    monkeypatch.setattr(Pipeline, "_expect", lambda *_: Awaited(mx.ones((1, 1, 64))))
    stepped(pipeline, caches)
    before = [array.tolist() for array in caches.arrays()]
    monkeypatch.setattr(Pipeline, "_expect", lambda *_: Awaited(lost(tmp_path)))
    with pytest.raises(RuntimeError):
        stepped(pipeline, caches)
    assert caches.position == 1
    assert not is_pending(caches.arrays())
    assert [array.tolist() for array in caches.arrays()] == before
    assert caches.can_roll_back(1)


def lost(place: Path) -> Any:
    """An array that cannot be evaluated: what it was to be read from is gone."""
    file = place / "lost.safetensors"
    mx.save_safetensors(str(file), {"hidden": mx.ones((1, 1, 64))})
    array = mx.load(str(file))["hidden"]
    file.write_bytes(b"")
    return array


def test_a_step_that_was_begun_ahead_draws_the_same(tmp_path: Path) -> None:
    stage = stage_of(write_model(tmp_path / "model", LLAMA), 0, 5)
    expected = undisturbed(tmp_path / "model", [5], 3)
    caches, sampler = stage.new_caches(), Sampler(Sampling(), VOCAB)
    pipeline = Pipeline(stage, no_group(), 0, 1, None)
    ahead: Pass | None = None
    sequence = [5]
    for index in range(3):
        step = Step(0, index, 1, SINGLY, index, False, 0, ahead=True)
        draw = partial(sampler.draw, history=list(sequence), step=index)
        begun: list[Pass] = []
        result = pipeline.run(
            step, [sequence[-1:]], caches, draw, [-1], False, ahead,
            lambda begun=begun: begun.append(pipeline.run_ahead(False, caches)),
        )  # fmt: skip
        (ahead,) = begun
        assert ahead.start == index + 1
        sequence.append(result.drawn[0].token)
    assert sequence[1:] == expected
    caches.roll_back(3)
    again = pipeline.run(
        Step(0, 3, 1, SINGLY, 3, False, 0), [sequence[-1:]], caches,
        partial(sampler.draw, history=sequence, step=3), [-1], False, None, lambda: None,
    )  # fmt: skip
    assert again.drawn[0].token == undisturbed(tmp_path / "model", [5], 4)[3]


def test_a_model_that_reads_its_own_values_gets_its_input_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name, config, first in (("llama", LLAMA, 3), ("dbrx", DBRX, 1)):
        stage = stage_of(write_model(tmp_path / name, config), first, first + 1 if name == "dbrx" else 5)
        hidden = mx.ones((1, 1, 64)) + 1
        monkeypatch.setattr(Pipeline, "_expect", lambda *_, hidden=hidden: Awaited(hidden))
        run = Stage.run

        def seen(*args: Any, hidden: Any = hidden, name: str = name, run: Any = run) -> Any:
            order.append(f"{name} built {'before' if is_pending([hidden]) else 'after'} its input came")
            return run(*args)

        with monkeypatch.context() as patched:
            patched.setattr(Stage, "run", seen)
            stepped(Pipeline(stage, no_group(), 1, 2, None), stage.new_caches())
    assert order == ["llama built before its input came", "dbrx built after its input came"]


@pytest.mark.parametrize("safe", [True, False])
def test_a_safe_step_begins_with_its_first_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safe: bool
) -> None:
    stage = stage_of(write_model(tmp_path / "model", LLAMA), 3, 5)
    pipeline, sampler = Pipeline(stage, no_group(), 1, 2, None), Sampler(Sampling(), VOCAB)
    monkeypatch.setattr(Pipeline, "_expect", lambda *_: Awaited(mx.ones((1, 1, 64))))
    begun: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "exoengine.generate.pipeline.begin_evaluation", lambda arrays: begun.extend(array.shape for array in arrays)
    )
    draw = partial(sampler.draw, history=[5], step=0)
    pipeline.run(
        Step(0, 0, 1, SINGLY, 0, safe, 0), [[5]], stage.new_caches(), draw, [-1], False, None, lambda: None
    )
    assert begun == ([(1, 1, 64)] if safe else [])


@pytest.mark.parametrize("first", [3, 4])
def test_a_prefill_runs_nothing_of_the_last_layer_but_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    stage = stage_of(write_model(tmp_path / "model", LLAMA), first, 5)
    pipeline = Pipeline(stage, no_group(), 1, 2, None)
    monkeypatch.setattr(Pipeline, "_expect", lambda *_: Awaited(mx.ones((1, 3, 64))))
    outs: list[Any] = []
    layer = type(stage.layers[4])
    call = layer.__call__

    def watched(*args: Any, **kwargs: Any) -> Any:
        outs.append(call(*args, **kwargs))
        return outs[-1]

    monkeypatch.setattr(layer, "__call__", watched)
    caches = stage.new_caches()
    pipeline.run(Step(0, 0, 3, 128, -1, True, 0), [[5, 6, 7]], caches, None, [-1], False, None, lambda: None)
    assert not is_pending(caches.arrays())
    assert is_pending(outs[-1:])


@dataclasses.dataclass
class Turned:
    """A patched MLX's switch."""

    turns: list[bool] = dataclasses.field(default_factory=list)

    def set_gpu_may_wait(self, may: bool) -> None:
        self.turns.append(may)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("builds_ahead", [True, False])
def test_the_switch_is_turned_before_a_step_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safe: bool, builds_ahead: bool
) -> None:
    stage = stage_of(write_model(tmp_path / "model", LLAMA), 3, 5)
    caches, sampler, switch = stage.new_caches(), Sampler(Sampling(), VOCAB), Turned()
    pipeline = Pipeline(stage, no_group(), 1, 2, switch)  # type: ignore[arg-type]
    monkeypatch.setattr(Pipeline, "_expect", lambda *_: Awaited(mx.ones((1, 1, 64))))
    draw = partial(sampler.draw, history=[5], step=0)
    ahead = pipeline.build(5, safe, caches, draw) if builds_ahead else None
    assert switch.turns == []
    pipeline.run(Step(0, 0, 1, SINGLY, 0, safe, 0), [[5]], caches, draw, [-1], False, ahead, lambda: None)
    assert switch.turns == [not safe]


FAILS_UNDER_WAY = """
import sys, time
from pathlib import Path
from exoengine.worker import _begin_mlx
_begin_mlx()
import mlx.core as mx
file = Path(sys.argv[1])
mx.save_safetensors(str(file), {"hidden": mx.ones((1, 1, 64))})
lost = mx.load(str(file))["hidden"]
file.write_bytes(b"")
mx.async_eval(lost)
time.sleep(0.5)
mx.async_eval(mx.add(mx.array(1), mx.array(1), stream=mx.cpu))
print("scheduled")
try:
    mx.eval(lost)
except RuntimeError:
    print("raised where it was waited for")
"""


def test_what_fails_under_way_is_raised_where_it_is_waited_for(tmp_path: Path) -> None:
    """Elsewhere MLX would count a task as under way that never runs, and one day wait for it."""
    ran = subprocess.run(
        [sys.executable, "-c", FAILS_UNDER_WAY, str(tmp_path / "lost.safetensors")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.stdout.splitlines() == ["scheduled", "raised where it was waited for"], ran.stderr
