"""Every architecture that mlx-lm can divide gives, as a tensor group, the tokens of mlx-lm's own over its ring.

CI runs a share of them on two ranks; `make parity` runs all, on two ranks and on four.
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
from exoengine.protocol import Loaded, SyncSettings
from tests.engine.divisible import NEEDS_METAL, PARTED, PARTED_MORE
from tests.engine.driver import Cluster, cluster, request
from tests.engine.models import undisturbed, write_model
from tests.engine.patient_ring import environment

PROMPT = [(7 * index + 3) % 250 for index in range(40)]
STEPS = 64
SEED = 9
WITHIN_S = 1800.0 if os.environ.get("PARITY") == "all" else 240.0
"""MLX's ring waits without sleeping on every rank: on a busy machine its answers come slowly."""

pytestmark = pytest.mark.timeout(WITHIN_S + 60)
"""The first test of each size waits for all of mlx-lm's answers."""

EVERY = [*PARTED, *PARTED_MORE]
IN_CI = [*PARTED, *PARTED_MORE[:4]]
CHOSEN = EVERY if os.environ.get("PARITY") == "all" else IN_CI

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


def plain(folders: dict[str, Path], ranks: int, place: Path) -> dict[str, list[list[int]]]:
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
def ranks(
    tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]
) -> Iterator[tuple[Cluster, dict[str, list[list[int]]]]]:
    expected = plain(folders, 2, tmp_path_factory.mktemp("plain"))
    with cluster(tmp_path_factory.mktemp("tensor"), 2) as made:
        yield made, expected


def assert_the_same(
    ranks: tuple[Cluster, dict[str, list[list[int]]]], folders: dict[str, Path], config: dict[str, Any]
) -> None:
    """A greedy and a sampled answer, in fast steps and in safe ones."""
    group, expected = ranks
    for sync in ("fast", "safe"):
        settings = SyncSettings(sync=sync)  # type: ignore[arg-type]
        for said in group.load_parts(folders[named(config)], group.size, layers_of(config), settings):
            assert isinstance(said, Loaded), said
        group.form()
        greedy = group.generate(request(PROMPT, STEPS)).tokens
        sampled = group.generate(request(PROMPT, STEPS, temperature=1.0, seed=SEED)).tokens
        assert [greedy, sampled] == expected[named(config)], sync


@pytest.mark.parametrize("config", CHOSEN, ids=named)
def test_a_tensor_group_gives_the_tokens_of_mlx_lms_own(
    ranks: tuple[Cluster, dict[str, list[list[int]]]], folders: dict[str, Path], config: dict[str, Any]
) -> None:
    assert_the_same(ranks, folders, config)


@pytest.mark.parametrize("config", [PARTED[1], PARTED[5]], ids=named)
def test_four_ranks_give_the_tokens_of_one_process(
    tmp_path: Path, folders: dict[str, Path], config: dict[str, Any]
) -> None:
    """Ranks 0 and 2, and 1 and 3, have a connection across the ring."""
    folder = folders[named(config)]
    with cluster(tmp_path, 4) as group:
        assert all(isinstance(said, Loaded) for said in group.load_parts(folder, 4, layers_of(config)))
        group.form()
        assert group.generate(request(PROMPT, STEPS)).tokens == undisturbed(folder, PROMPT, STEPS)


@pytest.fixture(scope="module")
def four(
    tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]
) -> Iterator[tuple[Cluster, dict[str, list[list[int]]]]]:
    expected = plain(folders, 4, tmp_path_factory.mktemp("plain"))
    with cluster(tmp_path_factory.mktemp("four"), 4) as made:
        yield made, expected


@pytest.mark.parametrize("config", CHOSEN if CHOSEN is EVERY else [], ids=named)
def test_four_ranks_give_the_tokens_of_mlx_lms_own(
    four: tuple[Cluster, dict[str, list[list[int]]]], folders: dict[str, Path], config: dict[str, Any]
) -> None:
    assert_the_same(four, folders, config)


def test_these_are_the_ones_that_can_be_divided() -> None:
    assert all(can_shard(named(config)) for config in EVERY)
    assert can_shard("mistral")  # by another architecture's module
    assert not can_shard("gemma2")
    assert not can_shard("../utils")


def test_none_that_can_be_divided_is_forgotten() -> None:
    models = Path(mlx_lm.models.__file__).parent
    divisible = {file.stem for file in models.glob("*.py") if can_shard(file.stem)}
    assert divisible == {named(config) for config in EVERY if named(config) != "mistral"} | set(NEEDS_METAL)
