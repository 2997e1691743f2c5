"""A quantised KV cache divided over ranks: the tokens of one process, through faults and follow-up turns; and the
kinds of caches that cannot be quantised are refused before anything is generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exoengine.model.cache_rollback import Quantisation
from exoengine.model.stages import Stage
from exoengine.model_files.memory_fit import SpanTable
from exoengine.model_files.model_folder import inspect
from exoengine.protocol import Abort, Aborted, LoadFailed, Sampling, TokenOut
from tests.engine.architectures import ALL, DENSE, HYBRID, LATENT, SLIDING
from tests.engine.driver import Answer, Cluster, request
from tests.engine.models import LLAMA, undisturbed, write_model

PROMPT = [7 * index % 250 for index in range(700)]
MORE = [3, 1, 4, 1, 5, 9, 2, 6]
WIDE = {**LLAMA, "head_dim": 64}


def named(configs: list[dict[str, Any]], model_type: str) -> dict[str, Any]:
    return next(config for config in configs if config["model_type"] == model_type)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "wide", WIDE)


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 64), (4, 32)])
def test_the_tokens_are_those_of_one_process(trio: Cluster, wide: Path, bits: int, group: int) -> None:
    trio.load(wide, [2, 2, 1], kv_bits=bits, kv_group_size=group)
    trio.form()
    expected = undisturbed(wide, PROMPT, 32, kv_bits=bits, kv_group=group)
    assert trio.generate(request(PROMPT, 32)).tokens == expected
    sampled = Sampling(temperature=1.0, seed=3)
    expected = undisturbed(wide, PROMPT, 32, sampled, kv_bits=bits, kv_group=group)
    assert trio.generate(request(PROMPT, 32, temperature=1.0, seed=3)).tokens == expected


def test_a_follow_up_turn_and_a_fault_change_nothing(trio: Cluster, wide: Path) -> None:
    trio.load(wide, [2, 3], kv_bits=4)
    trio.form()
    first = trio.generate(request(PROMPT, 20))
    turn = [*PROMPT, *first.tokens, *MORE]
    asked = request(turn, 40)
    trio.begin(asked)
    trio.ranks[1].expect(TokenOut, where=lambda said: said.request_id == asked.request_id and said.index == 10)
    trio.ranks[0].send(Abort("the test cuts a link"))
    for rank in trio.ranks[:2]:
        rank.expect(Aborted)
    trio.form()
    for answer in trio.finish(asked.request_id):
        assert isinstance(answer, Answer)
        assert answer.finished is not None
        assert answer.finished.cached_tokens == len(PROMPT) + 19
        assert answer.tokens == undisturbed(wide, turn, 40, kv_bits=4)


def test_the_bits_are_what_the_cache_takes(wide: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(wide)
    stage, summary, tokens = Stage(model, 0, 5), inspect(wide), 512
    plain, small = {}, {}
    for bits in (0, 8, 4):
        stage.quantisation = Quantisation(bits, 64) if bits else None
        caches = stage.new_caches()
        stage.run(mx.array([PROMPT[:tokens]]), None, caches)
        mx.eval(caches.arrays())
        plain[bits], small[bits] = caches.nbytes, SpanTable(summary, tokens, bits).cache_bytes(0, 5)
    assert plain[4] < plain[8] < plain[0] / 3
    assert all(small[bits] <= plain[bits] <= 2 * small[bits] for bits in (0, 8, 4)), "scales are float32 here"


def test_states_that_do_not_grow_stay_as_they_are(trio: Cluster, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hybrid", named(HYBRID, "qwen3_next"))
    trio.load(folder, [3, 1], kv_bits=8, kv_group_size=32)
    trio.form()
    expected = undisturbed(folder, PROMPT, 16, kv_bits=8, kv_group=32)
    assert trio.generate(request(PROMPT, 16)).tokens == expected


@pytest.mark.parametrize(
    ("config", "group", "why"),
    [
        (named(SLIDING, "gemma3_text"), 32, "RotatingKVCache"),
        (
            {**named(LATENT, "deepseek_v3"), "kv_lora_rank": 32, "qk_rope_head_dim": 32},
            32,
            "4 bits in groups of 32",
        ),
        (named(HYBRID, "mamba2"), 32, "nothing in it grows"),
        (named(DENSE, "qwen3"), 64, "groups of 64"),
    ],
    ids=["sliding", "latent", "states", "heads of 32 values"],
)
def test_what_cannot_be_quantised_is_refused_on_every_rank(
    trio: Cluster, tmp_path: Path, config: dict[str, Any], group: int, why: str
) -> None:
    folder = write_model(tmp_path / "model", config)
    for said in trio.load(folder, [2, 2], kv_bits=4, kv_group_size=group):
        assert isinstance(said, LoadFailed)
        assert said.code == "kv_bits_unsupported"
        assert why in said.text
        assert "set engine.kv_bits = 0" in said.text
        assert "\n" not in said.text


def test_the_cache_that_is_reckoned_with_is_never_more_than_what_is_used(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    for number, config in enumerate(ALL):
        folder = write_model(tmp_path / str(number), config)
        model, _ = load_model(folder)
        stage = Stage(model, 0, 4)
        caches = stage.new_caches()
        stage.run(mx.array([PROMPT[:300]]), None, caches)
        mx.eval(caches.arrays())
        summary = inspect(folder)
        computed = SpanTable(summary, 300).cache_bytes(0, 4)
        assert computed <= caches.nbytes, config["model_type"]
        if config in DENSE:
            assert 4 * computed >= caches.nbytes, config["model_type"]  # float32, and steps of 256 tokens
