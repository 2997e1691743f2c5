"""What a load costs in memory, and which one is refused before it begins."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exoengine.model.loading import check_fit, load
from exoengine.model_files.memory_fit import SpanTable
from exoengine.model_files.model_folder import ModelFolderError, inspect
from exoengine.protocol import Load, LoadFailed, SyncSettings
from tests.engine.driver import cluster, request
from tests.engine.models import LLAMA, write_model

LARGE = {**LLAMA, "hidden_size": 768, "num_hidden_layers": 8, "intermediate_size": 2304, "num_attention_heads": 12}

MEASURE = """
import sys
import mlx.core as mx
from exoengine.model.loading import load
from exoengine.protocol import Load
mx.reset_peak_memory()
model = load(Load(sys.argv[1], 2, 6), lambda *_: None)
print(model.weight_bytes, mx.get_peak_memory())
"""


def test_a_rank_never_holds_more_than_its_own_layers(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "large", LARGE)
    run = subprocess.run([sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, check=True)
    held, peak = map(int, run.stdout.split())
    summary = inspect(folder)
    assert 50e6 < held < 1.05 * sum(summary.layer_bytes[2:6])
    assert peak < 1.1 * held


def test_the_sum_of_spans_is_at_most_the_model(llama: Path) -> None:
    summary = inspect(llama)
    table = SpanTable(summary, 1000)
    for cut in range(1, summary.total_layers):
        parts = table.weight_bytes(0, cut) + table.weight_bytes(cut, summary.total_layers)
        assert summary.weight_bytes - 1 <= parts <= summary.weight_bytes
    assert table.weight_bytes(0, summary.total_layers) == summary.weight_bytes
    assert table.cache_bytes(1, 3) == 2 * 1000 * summary.kv_bytes_per_token
    assert SpanTable(summary, 1000, kv_bits=4).cache_bytes(1, 3) == table.cache_bytes(1, 3) * (4 + 32 / 64) / 16


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "intermediate_size"])
def test_sizes_beyond_what_an_array_may_have_are_one_clear_line(llama: Path, tmp_path: Path, key: str) -> None:
    """And not three processes that end with a traceback, one after the other."""
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: 10**12}))
    with pytest.raises(ModelFolderError, match="does not describe a llama model") as caught:
        load(Load(str(folder), 0, 2), lambda *_: None)
    assert caught.value.code == "bad_config"


def test_what_does_not_fit_is_refused_with_the_sum(llama: Path) -> None:
    summary = inspect(llama)
    weights = SpanTable(summary).weight_bytes(0, 3)
    check_fit(Load(str(llama), 0, 3), summary, weights)
    for bits in (0, 8, 4):
        context = SpanTable(summary, 2048, bits).cache_bytes(0, 3)
        check_fit(Load(str(llama), 0, 3, max_context_tokens=9999, kv_bits=bits), summary, weights + context)
    for context, available in ((0, weights - 1), (2048, weights)):
        with pytest.raises(ModelFolderError) as caught:
            check_fit(Load(str(llama), 0, 3, max_context_tokens=context), summary, available)
        assert caught.value.code == "does_not_fit"
        assert ("tokens of context" in str(caught.value)) == (context > 0)


NEARLY_FULL = """
import psutil
from types import SimpleNamespace
psutil.virtual_memory = lambda: SimpleNamespace(available=100_000, total=10**9)
"""

WITH_A_SWITCH = """
from mlx_patches import switch
class Recorder:
    def set_gpu_may_wait(self, allowed):
        print("the GPU may wait" if allowed else "the host waits", flush=True)
switch.find_switch = Recorder
"""


def test_a_worker_refuses_what_does_not_fit_and_lives(tmp_path: Path, llama: Path) -> None:
    with cluster(tmp_path, 1, prelude=NEARLY_FULL) as made:
        said = made.load(llama, [5])[0]
        assert isinstance(said, LoadFailed)
        assert said.code == "does_not_fit"
        assert "\n" not in said.text
        assert made.ranks[0].process.poll() is None


def test_the_switch_of_a_patched_mlx_is_turned_with_the_mode(tmp_path: Path, llama: Path) -> None:
    with cluster(tmp_path, 1, prelude=WITH_A_SWITCH) as made:
        log = Path(made.ranks[0].log.name)
        for sync, turned in (("safe", {"the host waits"}), ("fast", {"the host waits", "the GPU may wait"})):
            log.write_text("")
            made.load(llama, [5], SyncSettings(sync=sync))  # type: ignore[arg-type]
            made.form()
            made.generate(request([5, 6, 7], 4))
            lines = log.read_text().splitlines()
            assert set(lines) == turned
            assert lines[-1] == ("the host waits" if sync == "safe" else "the GPU may wait")


@pytest.mark.parametrize("parts", [2, 4])
def test_a_part_of_a_model_is_read_without_holding_much_more_than_it(
    tmp_path: Path, native: Any, parts: int
) -> None:
    """One whole tensor at a time: of a sixteenth of a model, that is little."""
    config = {
        **LLAMA, "hidden_size": 256, "num_hidden_layers": 16, "intermediate_size": 512,
        "num_key_value_heads": 4,
    }  # fmt: skip
    folder = write_model(tmp_path / "deep", config)
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    asked = Load(str(folder), 0, 16, part=0, parts=parts)
    held = load(asked, lambda *_: None, None, native).weight_bytes
    whole = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert held < 1.3 * whole / parts
    assert mx.get_peak_memory() - before < 1.1 * held
