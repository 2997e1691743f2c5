"""Every architecture that mlx-lm can divide gives, as a tensor group, the tokens of mlx-lm's own over its ring.

Also as a pipeline of two stages that are tensor groups of two: a stage's sums are those of two ranks. CI runs a
share of them; `make parity` runs all, on two ranks, on four, and on two by two.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx_lm.models
import pytest

from exoengine.model_files.tensor_support import can_shard
from exoengine.protocol import Loaded, LoadFailed, SyncSettings
from tests.engine.divisible import NEEDS_METAL, PARTED, PARTED_MORE
from tests.engine.driver import Cluster, cluster, request
from tests.engine.models import undisturbed, write_model
from tests.engine.patient_ring import environment

PROMPT = [(7 * index + 3) % 250 for index in range(40)]
STEPS = 64
SEED = 9
ALL = os.environ.get("PARITY") == "all"
WITHIN_S = 1800.0 if ALL else 240.0
"""MLX's ring waits without sleeping on every rank: on a busy machine its answers come slowly."""

pytestmark = pytest.mark.timeout(WITHIN_S + 60)
"""The first test of each size waits for all of mlx-lm's answers."""

EVERY = [*PARTED, *PARTED_MORE]
CHOSEN = EVERY if ALL else [*PARTED, *PARTED_MORE[:4]]
ON_FOUR = EVERY if ALL else [PARTED[4]]
"""MLX's ring of four waits without sleeping on all of them, and CI has two cores or four."""

NO_STAGES = ("deepseek_v41", "iquestloopcoder")
"""Their layers hand on more than the hidden state, or run more than once; one tensor group they can be."""
Tokens = list[list[int]]

_ports = itertools.count(15000 + os.getpid() % 100 * 40)


def layers_of(config: dict[str, Any]) -> int:
    text = config.get("text_config", config)
    return int(text.get("num_hidden_layers") or text["num_layers"])


def named(config: dict[str, Any]) -> str:
    return str(config["model_type"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("parted")
    return {named(config): write_model(place / named(config), config) for config in CHOSEN}


def plain(folders: dict[str, Path], ranks: int, place: Path) -> dict[str, Tokens]:
    """What mlx-lm itself gives: of each model a greedy and a sampled answer."""
    hosts = place / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{next(_ports)}"] for _ in range(ranks)]))
    gives_way = environment(place)
    order = {"prompt": PROMPT, "steps": STEPS, "seed": SEED, "folders": [str(one) for one in folders.values()]}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engine.plain_shard", json.dumps(order)],
            env={**os.environ, **gives_way, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [child.communicate(timeout=WITHIN_S)[0].splitlines() for child in children]
    finally:
        for child in children:
            child.kill()
    assert all(len(lines) == len(folders) for lines in said)
    return {name: json.loads(line) for name, line in zip(folders, said[0], strict=True)}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> dict[str, Tokens]:
    return plain(folders, 2, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def of_four(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> dict[str, Tokens]:
    chosen = {named(config): folders[named(config)] for config in ON_FOUR}
    return plain(chosen, 4, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("two"), 2) as made:
        yield made


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("four"), 4) as made:
        yield made


def answers(group: Cluster) -> Tokens:
    """A greedy and a sampled answer."""
    greedy = group.generate(request(PROMPT, STEPS)).tokens
    return [greedy, group.generate(request(PROMPT, STEPS, temperature=1.0, seed=SEED)).tokens]


def assert_the_same(group: Cluster, folder: Path, config: dict[str, Any], expected: Tokens) -> None:
    """In fast steps and in safe ones."""
    for sync in ("fast", "safe"):
        settings = SyncSettings(sync=sync)  # type: ignore[arg-type]
        for said in group.load_parts(folder, group.size, layers_of(config), settings):
            assert isinstance(said, Loaded), said
        group.form()
        assert answers(group) == expected, sync


@pytest.mark.parametrize("config", CHOSEN, ids=named)
def test_a_tensor_group_gives_the_tokens_of_mlx_lms_own(
    two: Cluster, of_two: dict[str, Tokens], folders: dict[str, Path], config: dict[str, Any]
) -> None:
    assert_the_same(two, folders[named(config)], config, of_two[named(config)])


@pytest.mark.parametrize("config", [PARTED[1], PARTED[5]], ids=named)
def test_four_ranks_give_the_tokens_of_one_process(
    four: Cluster, folders: dict[str, Path], config: dict[str, Any]
) -> None:
    """Ranks 0 and 2, and 1 and 3, have a connection across the ring."""
    folder = folders[named(config)]
    assert all(isinstance(said, Loaded) for said in four.load_parts(folder, 4, layers_of(config)))
    four.form()
    assert four.generate(request(PROMPT, STEPS)).tokens == undisturbed(folder, PROMPT, STEPS)


@pytest.mark.parametrize("config", ON_FOUR, ids=named)
def test_four_ranks_give_the_tokens_of_mlx_lms_own(
    four: Cluster, of_four: dict[str, Tokens], folders: dict[str, Path], config: dict[str, Any]
) -> None:
    assert_the_same(four, folders[named(config)], config, of_four[named(config)])


@pytest.mark.parametrize("config", EVERY if ALL else [PARTED[3], PARTED[6], PARTED_MORE[3]], ids=named)
def test_two_stages_of_two_give_the_tokens_of_mlx_lms_own(
    four: Cluster, of_two: dict[str, Tokens], folders: dict[str, Path], config: dict[str, Any]
) -> None:
    layers = layers_of(config)
    half = layers // 2
    said = four.load_stages(folders[named(config)], [(0, half), (half, layers)], 2)
    if named(config) in NO_STAGES:
        assert any(isinstance(one, LoadFailed) and one.code == "not_splittable" for one in said), said
        return
    assert all(isinstance(one, Loaded) for one in said), said
    four.form()
    assert answers(four) == of_two[named(config)]


def test_these_are_the_ones_that_can_be_divided() -> None:
    assert all(can_shard(named(config)) for config in EVERY)
    assert can_shard("mistral")  # by another architecture's module
    assert not can_shard("gemma2")
    assert not can_shard("../utils")


def test_none_that_can_be_divided_is_forgotten() -> None:
    models = Path(mlx_lm.models.__file__).parent
    divisible = {file.stem for file in models.glob("*.py") if can_shard(file.stem)}
    assert divisible == {named(config) for config in EVERY if named(config) != "mistral"} | set(NEEDS_METAL)
