"""A folder that somebody made to hurt: one clear line, no memory and no time beyond what is stated."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exoengine.model_files import model_folder
from exoengine.model_files.model_folder import ModelFolderError, inspect

MOST_BYTES = 64 * 1024 * 1024
"""Of memory, for a folder whose files have some kilobytes."""

GENEROUS_S = 20.0


@pytest.fixture
def folder(tmp_path: Path, llama: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def header_of(folder: Path) -> tuple[Path, dict[str, Any], bytes]:
    (file,) = folder.glob("model*.safetensors")
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return file, json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(file: Path, header: bytes, data: bytes) -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


def change_offsets(folder: Path, change: Callable[[list[int]], object]) -> None:
    file, header, data = header_of(folder)
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"] = change(header[name]["data_offsets"])
    write_header(file, json.dumps(header).encode(), data)


def set_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder: Path) -> str:
    """What is said of it, within the bounds."""
    begun = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ModelFolderError) as caught:
            inspect(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES
    assert time.monotonic() - begun < GENEROUS_S
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda old: [-(10**14), 8],
        lambda old: [0, -8],
        lambda old: [8, 0],
        lambda old: [0, 10**18],
        lambda old: [0, 10**30],
        lambda old: [0.5, 8],
        lambda old: [True, 8],
        lambda old: [0],
        lambda old: [0, 8, 16],
        lambda old: None,
        lambda old: "0,8",
        lambda old: [old[0], old[1] + 4],
    ],
)
def test_offsets_that_no_file_has_are_refused(folder: Path, change: Callable[[list[int]], object]) -> None:
    change_offsets(folder, change)
    assert "safetensors" in refused(folder) or "truncated" in refused(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": 10**30},
        {"num_hidden_layers": 100_000_000},
        {"num_hidden_layers": -1},
        {"model_type": None},
    ],
)
def test_a_configuration_that_no_model_has_is_refused(folder: Path, values: dict[str, object]) -> None:
    set_config(folder, **values)
    refused(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"max_position_embeddings": 1e30},
        {"max_position_embeddings": 10**30},
        {"max_position_embeddings": 10**400},
        {"vocab_size": 10**400, "sliding_window": 10**400},
        {"num_attention_heads": 10**40, "head_dim": 10**40},
        {"vocab_size": 10**40},
        {"sliding_window": 10**40},
        {"model_type": "x" * 1_000_000},
    ],
)
def test_figures_beyond_all_reason_are_bounded(folder: Path, values: dict[str, object]) -> None:
    set_config(folder, **values)
    found = inspect(folder)
    assert 0 < found.max_context_tokens < 2**31
    assert 0 <= found.kv_bytes_per_token < 2**63
    assert found.vocab_size < 2**31
    assert len(found.model_type) <= 1024


@pytest.mark.parametrize(
    "content",
    [b"[" * 1_000_000, b'{"a":' * 500_000, b"\xff\xfe", b"9" * 100_000, b"", b"null", b"[]", b'{"model_type":7}'],
)
def test_what_is_no_configuration_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"a":{"data_offsets":[' + b"[]," * 300_000 + b"[]]}}",
        b'{"a":[' + b"{}," * 300_000 + b"{}]}",
        b'{"' + b"x" * 100_000 + b'":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"\xff":1}',
    ],
)
def test_a_header_that_is_none_is_refused(folder: Path, header: bytes) -> None:
    file, _, data = header_of(folder)
    write_header(file, header, data)
    refused(folder)


def test_tensors_that_lie_over_each_other_are_refused(folder: Path) -> None:
    file, _header, data = header_of(folder)
    whole = [0, len(data)]
    entry = {"dtype": "F32", "shape": [1], "data_offsets": whole}
    write_header(file, json.dumps({f"model.layers.{n}.w": entry for n in range(1000)}).encode(), data)
    refused(folder)


def test_a_file_that_claims_exabytes_is_refused(folder: Path) -> None:
    file, _header, _ = header_of(folder)
    os.truncate(file, 8 * 1024**4)
    second = folder / "model-2.safetensors"
    shutil.copy(folder / "config.json", second)
    os.truncate(second, 9 * 1024**4)
    assert "16 TiB" in refused(folder)


OPENED = [
    "config.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "some_other.json",
]


@pytest.mark.parametrize("name", OPENED)
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    """mlx-lm and transformers open files that this project never looks at."""
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert "is no file" in refused(folder)


@pytest.mark.parametrize("name", OPENED)
def test_a_link_to_a_device_is_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")
    assert "is no file" in refused(folder)


@pytest.mark.parametrize("name", ["x\n.safetensors", "\x1b[2J", "\ud800"])
def test_what_an_index_says_is_told_in_one_line_that_a_terminal_can_show(folder: Path, name: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert refused(folder).isprintable()


@pytest.mark.parametrize("kind", ["llama\n", "\x1b[2J", "\ud800", "a\u202eb"])
def test_a_model_type_that_no_terminal_and_no_message_can_hold_is_refused(folder: Path, kind: str) -> None:
    set_config(folder, model_type=kind)
    assert "does not name its model_type" in refused(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "x\0y"])
def test_an_index_names_no_file_elsewhere(folder: Path, name: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "outside of its folder" in refused(folder)


def test_a_tokenizer_without_end_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "MAX_TEXT_FILE_BYTES", 1024 * 1024)
    os.truncate(folder / "tokenizer.json", 2 * 1024 * 1024)
    assert "larger than 1 MiB" in refused(folder)


def test_bytes_that_were_changed_anywhere_are_one_line_or_a_model(folder: Path) -> None:
    rng = random.Random(7)
    file, _, _ = header_of(folder)
    originals = {path: path.read_bytes() for path in (file, folder / "config.json")}
    for _ in range(300):
        for path, original in originals.items():
            changed = bytearray(original)
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(min(len(changed), 4096))] = rng.randrange(256)
            path.write_bytes(changed)
        try:
            inspect(folder)
        except ModelFolderError as error:
            assert "\n" not in str(error)  # noqa: PT017
