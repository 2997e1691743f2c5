"""What two loads of one model have in common is read once, and a load that nobody wants any more is called off."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import psutil
import pytest

from exoengine.model import loading
from exoengine.model.loading import HeldLayers, LoadCalledOffError, load
from exoengine.model.stages import Stage
from exoengine.model_files.model_folder import inspect
from exoengine.protocol import Load, Loaded, LoadFailed, LoadProgress, SyncSettings
from tests.engine.architectures import DENSE, EXPERTS, HYBRID, LATENT, SLIDING
from tests.engine.driver import Cluster, cluster, request
from tests.engine.models import LLAMA, write_model

DEEP = {**LLAMA, "num_hidden_layers": 12}
PROMPT = [7 * index % 250 for index in range(40)]

SLOWLY = """
import time
from pathlib import Path
from exoengine.model import loading
read = loading._evaluate
def slowly(folder, parameters):
    time.sleep(1.0)
    read(folder, parameters)
    with Path({seen!r}).open("a") as file:
        file.write("read ")
loading._evaluate = slowly
"""


class Disk:
    """Counts the layers that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        self._read = loading._evaluate
        monkeypatch.setattr(loading, "_evaluate", self._count)

    def _count(self, folder: Path, parameters: Any) -> None:
        self.reads += 1
        self._read(folder, parameters)

    def layers_read(self) -> int:
        reads, self.reads = self.reads, 0
        return reads


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    return write_model(tmp_path / "deep", DEEP)


def logits(stage: Stage) -> list[float]:
    return stage.run(mx.array([PROMPT]), None, stage.new_caches()).out[0, -1].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "config",
    [DENSE[0], DENSE[-1], *SLIDING[::3], *EXPERTS[::3], *LATENT[::2], *HYBRID[::3]],
    ids=lambda config: str(config["model_type"]),
)
def test_a_stage_of_held_layers_is_the_same_as_one_that_was_read(
    config: dict[str, Any], tmp_path: Path, disk: Disk
) -> None:
    folder = str(write_model(tmp_path / "model", config))
    layers = inspect(Path(folder)).total_layers
    held = HeldLayers()
    load(Load(folder, 0, layers // 2), lambda *_: None, held)
    assert disk.layers_read() == layers // 2
    gc.collect()  # as a worker does before it loads: what is freed meanwhile would be taken from the new weights
    grown = load(Load(folder, 0, layers), lambda *_: None, held)
    assert disk.layers_read() == layers - layers // 2
    gc.collect()
    read = load(Load(folder, 0, layers), lambda *_: None)
    assert logits(grown.stage) == logits(read.stage)
    assert grown.weight_bytes == pytest.approx(read.weight_bytes, rel=0.01)


def test_a_smaller_share_reads_nothing_and_lets_go_of_the_rest(deep: Path, disk: Disk) -> None:
    held = HeldLayers()
    whole = load(Load(str(deep), 0, 12), lambda *_: None, held).weight_bytes
    layer_s = held.layer_s
    disk.layers_read()
    before = mx.get_active_memory()
    load(Load(str(deep), 0, 3), lambda *_: None, held)
    assert disk.layers_read() == 0
    assert before - mx.get_active_memory() > whole / 2
    assert held.layer_s == layer_s > 0, "what is not read says nothing of the disk"


def test_layers_of_another_model_are_not_taken_for_this_ones(deep: Path, tmp_path: Path, disk: Disk) -> None:
    held = HeldLayers()
    load(Load(str(deep), 0, 12), lambda *_: None, held)
    disk.layers_read()
    load(Load(str(write_model(tmp_path / "other", {**DEEP, "rope_theta": 5000.0})), 0, 4), lambda *_: None, held)
    assert disk.layers_read() == 4
    shutil.rmtree(deep)
    load(Load(str(write_model(deep, DEEP)), 0, 4), lambda *_: None, held)
    disk.layers_read()
    shutil.rmtree(deep)
    load(Load(str(write_model(deep, DEEP, seed=1)), 0, 4), lambda *_: None, held)
    assert disk.layers_read() == 4, "the same folder with other weights"


def test_a_load_that_is_called_off_keeps_what_it_read(deep: Path, disk: Disk) -> None:
    def off(done: int, total: int) -> None:
        if done > total / 3:
            raise LoadCalledOffError

    held = HeldLayers()
    with pytest.raises(LoadCalledOffError):
        load(Load(str(deep), 0, 12), off, held)
    assert disk.layers_read() == 5
    load(Load(str(deep), 2, 8), lambda *_: None, held)
    assert disk.layers_read() == 3


def test_what_is_held_and_what_mlx_keeps_is_reckoned_as_available(
    deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_by_mlx: list[int] = []

    def little() -> SimpleNamespace:
        kept_by_mlx.append(mx.get_cache_memory())
        return SimpleNamespace(available=whole // 3, total=10**9)

    held = HeldLayers()
    whole = load(Load(str(deep), 0, 12), lambda *_: None, held).weight_bytes
    monkeypatch.setattr(psutil, "virtual_memory", little)
    load(Load(str(deep), 0, 12), lambda *_: None, held)
    with pytest.raises(loading.ModelFolderError, match="available"):
        load(Load(str(deep), 0, 12), lambda *_: None)
    assert kept_by_mlx == [0, 0, 0]  # the second load counts the room of its KV caches as well


def test_a_worker_follows_the_next_load_at_once(tmp_path: Path, deep: Path) -> None:
    seen = tmp_path / "seen"
    with cluster(tmp_path, 1, prelude=SLOWLY.format(seen=str(seen))) as slow:
        rank = slow.ranks[0]
        rank.send(Load(str(deep), 0, 12, SyncSettings()))
        rank.expect(LoadProgress)
        rank.send(Load(str(deep), 0, 1, SyncSettings()))
        said = rank.expect(Loaded)
        assert said.layers == (0, 1)
        assert said.layer_s >= 1.0
        assert len(seen.read_text().split()) < 12, "the first came to no end, and the second read nothing"
        progress = [said for said in rank.seen if isinstance(said, LoadProgress)]
        assert [said.done_bytes == said.total_bytes for said in progress].count(True) == 1
        rank.disconnect()
        greeted = rank.connect()
        assert (greeted.load_s, greeted.layer_s) == (said.load_s, said.layer_s)


def test_answers_are_the_same_however_the_layers_came(trio: Cluster, deep: Path) -> None:
    texts = []
    for split in ([6, 6], [12], [6, 6], [4, 8]):
        trio.load(deep, split)
        trio.form()
        texts.append(trio.generate(request(PROMPT, 12)).tokens)
    assert texts[1:] == texts[:1] * 3


def test_of_a_model_that_another_one_replaced_nothing_is_kept(tmp_path: Path) -> None:
    """Not the weights, and not the descriptors of the group that a part was divided with."""
    wide = {**LLAMA, "hidden_size": 256, "intermediate_size": 2048, "num_attention_heads": 8}
    folders = [write_model(tmp_path / name, wide) for name in ("one", "other")]
    with cluster(tmp_path, 1) as alone:
        process, memory, descriptors = psutil.Process(alone.ranks[0].process.pid), [], []
        for turn in range(6):
            loads = alone.load_parts(folders[turn % 2], 1, wide["num_hidden_layers"])
            assert isinstance(loads[0], Loaded)
            alone.form()
            alone.generate(request(PROMPT, 4))
            alone.ranks[0].send(Load(str(folders[turn % 2]), 0, wide["num_hidden_layers"], part=0, parts=2))
            assert isinstance(alone.ranks[0].expect(Loaded, LoadFailed), Loaded)
            memory.append(process.memory_info().rss)
            descriptors.append(process.num_fds())
    weights = (folders[0] / "model.safetensors").stat().st_size
    assert memory[-1] - memory[1] < weights, [one >> 20 for one in memory]
    assert max(descriptors[2:]) == descriptors[1], descriptors
