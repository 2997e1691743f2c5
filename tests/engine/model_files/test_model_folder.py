"""What is read of a model without MLX."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exoengine.model_files import model_folder
from exoengine.model_files.model_folder import ModelFolderError, find_local, inspect
from tests.engine.architectures import ALL
from tests.engine.models import LLAMA, write_model


def test_the_sizes_add_up_and_are_those_of_the_layers(llama: Path) -> None:
    summary = inspect(llama)
    assert summary.total_layers == len(summary.layer_bytes) == 5
    assert len(set(summary.layer_bytes)) == 1
    assert summary.weight_bytes == sum(summary.layer_bytes) + summary.other_bytes
    assert (summary.vocab_size, summary.max_context_tokens, summary.model_type) == (260, 2048, "llama")
    assert summary.kv_bytes_per_token == 2 * 2 * 16 * 2


def test_every_architecture_can_be_inspected(tmp_path: Path) -> None:
    for number, config in enumerate(ALL):
        summary = inspect(write_model(tmp_path / str(number), config))
        assert summary.total_layers == 4
        assert all(size > 0 for size in summary.layer_bytes), config["model_type"]


def test_the_fingerprint_tells_weights_apart(tmp_path: Path, llama: Path) -> None:
    same = write_model(tmp_path / "same", LLAMA)
    other = write_model(tmp_path / "other", LLAMA, seed=1)
    assert inspect(same).fingerprint == inspect(llama).fingerprint != inspect(other).fingerprint


def test_the_fingerprint_tells_a_single_retrained_tensor(tmp_path: Path, llama: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(llama, folder)
    (file,) = folder.glob("model*.safetensors")
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length]).items()
    tensors = {name: entry["data_offsets"] for name, entry in entries if name != "__metadata__"}
    for name, (begin, end) in tensors.items():
        changed = content.copy()
        data = slice(8 + length + begin, 8 + length + end)
        changed[data] = bytes(byte ^ 1 for byte in changed[data])
        file.write_bytes(changed)
        assert inspect(folder).fingerprint != inspect(llama).fingerprint, name


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_the_fingerprint_tells_every_small_file_that_matters(tmp_path: Path, llama: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(llama, folder)
    with (folder / name).open("a") as stream:
        stream.write("\n")
    assert inspect(folder).fingerprint != inspect(llama).fingerprint


def test_a_large_tensor_is_sampled_all_over_and_a_model_of_many_in_bounds(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, "SAMPLE_EVERY_BYTES", 1000)
    spots = model_folder._spots({"a": {"data_offsets": [0, 3500]}, "b": {"data_offsets": [3500, 3600]}})
    assert spots == [0, 875, 1750, 2625, 3500]
    plain = inspect(llama).fingerprint
    monkeypatch.setattr(model_folder, "MAX_SAMPLES", 4)
    assert inspect(llama).fingerprint != plain, "fewer pages were read"


def test_a_folder_is_resolved_to_itself(llama: Path) -> None:
    assert find_local(str(llama)) == llama


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "three/parts/here", "embedded:nobody"])
def test_what_is_no_model_is_one_clear_line(model: str) -> None:
    with pytest.raises(ModelFolderError) as caught:
        find_local(model)
    assert "\n" not in str(caught.value)
    assert caught.value.code in ("no_folder", "no_such_model")


def test_the_id_of_a_repository_is_no_folder_here() -> None:
    assert find_local("nobody/nothing") is None


def test_the_daemons_part_imports_no_mlx() -> None:
    code = (
        "import sys, exoengine.model_files.model_folder, exoengine.protocol\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('mlx', 'mlx_lm', 'transformers')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
