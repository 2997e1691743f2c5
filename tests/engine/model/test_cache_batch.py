"""Sequences whose caches are brought together compute what each computes alone, and part, and go back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exoengine.model import cache_batch
from exoengine.model.cache_batch import OneByOne, StageBatch, batched
from exoengine.model.cache_rollback import StageCaches
from exoengine.model.loading import load
from exoengine.model.stages import Stage
from exoengine.protocol import Load, SyncSettings
from tests.engine.architectures import ALL, DENSE, EXPERTS, HYBRID, LATENT, SLIDING
from tests.engine.models import LLAMA, write_model

LENGTHS = (40, 33, 5)
"""Longer than these models' windows and shorter."""

CLOSE = 1e-4
"""Of float32, whose products are added up in another order: far above what that changes."""

NO_BATCHES = {"gemma2"}
"""mlx-lm's gemma2 takes a mask for repeated heads."""


def stage_of(config: dict[str, Any], folder: Path, **options: int) -> Stage:
    layers = int(config.get("num_hidden_layers") or config.get("num_layers") or config["n_layer"])
    made = write_model(folder / "model", config)
    return load(Load(str(made), 0, layers, SyncSettings(), **options), lambda *_: None).stage


def prefilled(stage: Stage, length: int) -> StageCaches:
    caches = stage.new_caches()
    caches.mark(length)
    stage.run(mx.array([[(7 * index + length) % 250 for index in range(length)]]), None, caches)
    mx.eval(caches.arrays())
    return caches


def step(stage: Stage, caches: Any, tokens: list[int]) -> Any:
    """The logits of each sequence (n, vocabulary), after a token of each."""
    caches.mark(*([1] if isinstance(caches, StageCaches) else []))
    logits = stage.run(mx.array([[token] for token in tokens]), None, caches).out[:, -1, :]
    mx.eval(logits, caches.arrays())
    return logits


def alone(stage: Stage, length: int, tokens: list[int]) -> Any:
    """The logits after the last of `tokens`."""
    caches = prefilled(stage, length)
    for token in tokens[:-1]:
        step(stage, caches, [token])
    return step(stage, caches, tokens[-1:])[0]


def same(found: Any, expected: Any) -> bool:
    return bool(mx.abs(found - expected).max().item() <= CLOSE * max(1.0, mx.abs(expected).max().item()))


@pytest.mark.parametrize("config", ALL, ids=lambda config: str(config["model_type"]))
def test_every_architecture_that_takes_batches_computes_the_same_in_them(
    config: dict[str, Any], tmp_path: Path
) -> None:
    stage = stage_of(config, tmp_path)
    assert stage.takes_batches != (config["model_type"] in NO_BATCHES)
    if not stage.takes_batches:
        return
    members = [prefilled(stage, length) for length in LENGTHS]
    batch = batched(members)
    for index in range(3):
        logits = step(stage, batch, [index, 50 + index, 100 + index])
    for row, length in enumerate(LENGTHS):
        assert same(logits[row], alone(stage, length, [50 * row + index for index in range(3)]))
    # One leaves, the others stay; then each goes on alone.
    assert [member.position for member in members] == [length + 3 for length in LENGTHS]
    logits = step(stage, batched(members[1:]), [9, 9])
    last = [50, 51, 52, 9]
    assert same(logits[0], alone(stage, LENGTHS[1], last))
    assert same(step(stage, members[1], [8])[0], alone(stage, LENGTHS[1], [*last, 8]))
    assert same(step(stage, members[0], [8])[0], alone(stage, LENGTHS[0], [0, 1, 2, 8]))


KINDS = [LLAMA, SLIDING[0], HYBRID[0], HYBRID[6], EXPERTS[6], LATENT[2]]


@pytest.mark.parametrize("config", KINDS, ids=lambda config: str(config["model_type"]))
def test_each_sequence_goes_back_from_a_batch_by_itself(config: dict[str, Any], tmp_path: Path) -> None:
    stage = stage_of(config, tmp_path)
    members = [prefilled(stage, length) for length in LENGTHS]
    for index in range(4):
        step(stage, batched(members), [index, 50 + index, 100 + index])
    for back, (member, length) in enumerate(zip(members, LENGTHS, strict=True)):
        assert member.can_roll_back(length + 4 - back)
        member.roll_back(length + 4 - back)
    for row, (member, length) in enumerate(zip(members, LENGTHS, strict=True)):
        tokens = [50 * row + index for index in range(4 - row)]
        assert same(step(stage, member, [7])[0], alone(stage, length, [*tokens, 7]))


@pytest.mark.parametrize("config", KINDS, ids=lambda config: str(config["model_type"]))
def test_a_pass_of_a_batch_that_failed_between_two_layers_was_none(config: dict[str, Any], tmp_path: Path) -> None:
    stage = stage_of(config, tmp_path)
    stage.cut_between_layers()
    members = [prefilled(stage, length) for length in LENGTHS]
    step(stage, batched(members), [1, 2, 3])
    batch = batched(members)
    batch.mark()

    def fail(_: Any) -> None:
        raise RuntimeError("the test fails a layer")

    with pytest.raises(RuntimeError, match="the test"):
        stage.run(mx.array([[4], [5], [6]]), None, batch, fail)
    for row, (member, length) in enumerate(zip(members, LENGTHS, strict=True)):
        assert member.can_roll_back(length + 1)
        member.roll_back(length + 1)
        assert same(step(stage, member, [7])[0], alone(stage, length, [row + 1, 7]))


def test_a_beginning_is_copied_out_of_a_batch_without_ending_it(tmp_path: Path) -> None:
    stage = stage_of(LLAMA, tmp_path)
    members = [prefilled(stage, length) for length in LENGTHS]
    step(stage, batched(members), [1, 2, 3])
    batch, copied = members[1].batch, stage.new_caches()
    copied.copy_from(members[1], LENGTHS[1] + 1)
    assert members[1].batch is batch
    assert same(step(stage, copied, [7])[0], alone(stage, LENGTHS[1], [2, 7]))


def test_caches_that_a_batch_lost_are_used_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(LLAMA, tmp_path)
    members = [prefilled(stage, length) for length in LENGTHS]
    batched(members)
    monkeypatch.setattr(cache_batch, "is_tainted", lambda _: True)  # as a step that was aborted may leave them
    assert not any(member.can_roll_back(member.position) for member in members)
    with pytest.raises(RuntimeError, match="has taken the caches"):
        members[0].for_model(1)
    with pytest.raises(RuntimeError, match="has taken the caches"):
        batched(members)


@pytest.mark.parametrize("config", [DENSE[6], LLAMA], ids=["gemma2", "quantised"])
def test_what_cannot_be_batched_runs_one_after_the_other(config: dict[str, Any], tmp_path: Path) -> None:
    options = {"kv_bits": 8, "kv_group_size": 32} if config is LLAMA else {}
    stage = stage_of({**config, "head_dim": 32}, tmp_path, **options)
    assert not stage.takes_batches
    members = [prefilled(stage, length) for length in LENGTHS]
    together = OneByOne(members)
    together.mark()
    before = together.references()
    for row, (member, length) in enumerate(zip(together.members, LENGTHS, strict=True)):
        assert same(step(stage, member, [row])[0], alone(stage, length, [row]))
    together.put_back(before, 0)
    assert [member.position for member in members] == list(LENGTHS)


def test_the_same_sequences_stay_one_batch(tmp_path: Path) -> None:
    stage = stage_of(LLAMA, tmp_path)
    members = [prefilled(stage, length) for length in LENGTHS]
    batch = batched(members)
    assert isinstance(batch, StageBatch)
    assert batched(members) is batch
    assert batched(members[:2]) is not batch
    assert members[2].batch is None
