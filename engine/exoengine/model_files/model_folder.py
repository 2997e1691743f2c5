"""What a model folder holds, read from its text files and the headers of its weights alone.

Decides: is this a folder that a rank can load, how many layers has it, how large is each, how large is its KV
cache, and what is its fingerprint. Never imports MLX, never reads a weight and never asks a network: the daemon
calls `inspect` before it plans a split, and the worker calls it again before it loads.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from exoengine.decoding import DecodingError, WrongShapeError, from_json
from exoengine.model_files.memory_fit import WHOLE_CONTEXT, ModelSizes
from exoengine.model_files.tensor_support import can_shard, head_counts, is_known

MAX_HEADER_BYTES: Final = 32 * 1024 * 1024
"""Of one file: 200,000 tensors. The format allows 100 MiB, which a hostile folder could fill with what takes
gigabytes once it is decoded."""

MAX_TENSORS: Final = 262_144
"""In all files of a folder: the largest mixtures of experts have 140,000."""

MAX_NAME_CHARS: Final = 1024
"""Of a tensor, a type, a file."""

MAX_WEIGHT_BYTES: Final = 16 * 1024**4
"""16 TiB: ten times the largest models. A sparse file may claim exabytes."""

MAX_TEXT_FILE_BYTES: Final = 512 * 1024 * 1024
"""Of a tokenizer; the largest have 35 MiB."""

MAX_CONFIG_BYTES: Final = 32 * 1024 * 1024
"""Of a configuration or an index: as a header."""

MAX_WHOLE: Final = 2**31 - 1
"""What a configuration may say of anything: the sizes that follow from it stay below 2^63."""

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json")

LAYER_INDEX: Final = re.compile(r"^(?:(.*?)\.)?(\d{1,6})\.(.+)$")
"""Splits `model.layers.7.mlp.up_proj.weight` into the list's name, the index and the rest."""

LAYER_COUNT_KEYS: Final = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_transformer_layers")

CONTEXT_KEYS: Final = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "n_ctx",
    "max_context_length",
)  # fmt: skip

DEFAULT_CONTEXT_TOKENS: Final = 32_768
"""Where a config names no limit (state-space models): a bound that a request can be checked against."""

KV_BYTES_PER_VALUE: Final = 2
"""bfloat16 and float16, which nearly every model computes in."""

WHOLE_FILES: Final = (
    "config.json", "generation_config.json", "model.safetensors.index.json", *TOKENIZER_FILES,
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What decides how the weights are used and what a prompt becomes: hashed whole, some megabytes at most."""

SAMPLE_BYTES: Final = 4096
SAMPLE_EVERY_BYTES: Final = 64 * 1024 * 1024
MAX_SAMPLES: Final = 32_768
"""Of the weights a page of each tensor is hashed, and of large ones a page for every 64 MiB. Training changes all
of a tensor, so a fine-tune of a single one shows, for some thousand small reads where reading a large model would
take minutes on every rank. What it cannot see is damage between the pages."""

EMBEDDED_PREFIX: Final = "embedded:"


class ModelFolderError(Exception):
    """This is no folder that a rank can load; `str(error)` is one line for people, `code` is stable."""

    def __init__(self, code: str, text: str) -> None:
        # It may repeat what the folder says: no line break or terminal escape of it, nor what is no Unicode.
        super().__init__("".join(one if one.isprintable() else "\ufffd" for one in text))
        self.code = code


class ModelSummary(ModelSizes, frozen=True, kw_only=True):
    """What is known of a model before it is loaded."""

    model_type: str
    weight_bytes: int
    vocab_size: int
    fingerprint: str
    is_known: bool = True
    """Has mlx-lm a module for it, as far as its source tells?"""


def inspect(folder: Path) -> ModelSummary:
    """Reads config.json and the headers of the weights. Raises ModelFolderError with one clear line."""
    config = read_config(folder)
    _refuse_endless(folder)
    files = _weight_files(folder)
    headers: dict[Path, dict[str, Any]] = {}
    for file in files:
        headers[file] = _read_header(file)
        if sum(map(len, headers.values())) > MAX_TENSORS:
            raise ModelFolderError("bad_weights", f"the weights in {folder} have more than {MAX_TENSORS} tensors")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        names = ", ".join(TOKENIZER_FILES)
        raise ModelFolderError("no_tokenizer", f"{folder} has no tokenizer: one of {names} is needed")
    text = _text_config(config)
    total_layers = _layer_count(folder, text)
    sizes = _tensor_sizes(headers)
    layer_bytes = _layer_bytes(folder, sizes, total_layers)
    weight_bytes = sum(sizes.values())
    return ModelSummary(
        model_type=str(config["model_type"])[:MAX_NAME_CHARS],
        weight_bytes=weight_bytes,
        layer_bytes=layer_bytes,
        other_bytes=weight_bytes - sum(layer_bytes),
        kv_bytes_per_token=_kv_bytes_per_token(text),
        kv_windows=_kv_windows(text, total_layers),
        vocab_size=_whole(text.get("vocab_size")) or _whole(config.get("vocab_size")) or 0,
        max_context_tokens=_max_context_tokens(text),
        fingerprint=_fingerprint(folder, headers),
        is_known=is_known(str(config["model_type"])),
        can_shard=can_shard(str(config["model_type"])),
        heads=head_counts(text),
        kv_is_divided=not text.get("kv_lora_rank"),
        hidden_size=_hidden_size(text),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dictionary that names a model type. Raises ModelFolderError."""
    if not folder.exists():
        raise ModelFolderError("no_folder", f"the model folder {folder} does not exist")
    if not folder.is_dir():
        raise ModelFolderError("not_a_folder", f"the model {folder} is a file; a folder is needed")
    path = folder / "config.json"
    if not path.exists():
        raise ModelFolderError("no_config", f"{folder} is not a model folder: it has no config.json")
    config = _read_json(path, "bad_config")
    if not isinstance(config, dict):
        raise ModelFolderError("bad_config", f"{path} must hold a JSON object")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type.isprintable():
        raise ModelFolderError("bad_config", f"{path} does not name its model_type")
    return cast("dict[str, Any]", config)


def find_local(model: str) -> Path | None:
    """The folder of a model that is here: a folder's path, or `embedded:NAME`. None for what can only be the id of
    a Hugging Face repository. Raises ModelFolderError where it is nothing of these.
    """
    if model.startswith(EMBEDDED_PREFIX):
        return _embedded(model)
    folder = Path(model).expanduser()
    if folder.exists():
        return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) is None or model.startswith((".", "/", "~")):
        raise ModelFolderError("no_folder", f"the model folder {model} does not exist")
    return None


def _embedded(model: str) -> Path:
    from exoengine import embedded

    try:
        return Path(embedded.model_folder(model))
    except (KeyError, ValueError, FileNotFoundError) as error:
        raise ModelFolderError("no_such_model", f"there is no embedded model {model!r}: {error}") from error


def _refuse_endless(folder: Path) -> None:
    """Pipes, sockets and devices: who opens one waits for ever, or reads without end. mlx-lm and transformers open
    whatever has one of their names. Raises ModelFolderError.
    """
    try:
        for path in folder.iterdir():
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise ModelFolderError("unreadable", f"{path} is no file")
    except OSError as error:
        raise ModelFolderError("unreadable", f"{folder} cannot be read: {error.strerror}") from error


def _weight_files(folder: Path) -> list[Path]:
    index_path = folder / "model.safetensors.index.json"
    found = sorted(folder.glob("model*.safetensors"))
    if index_path.is_file():
        try:
            names = {str(name) for name in _read_json(index_path, "bad_index")["weight_map"].values()}
        except (KeyError, AttributeError, TypeError) as error:
            raise ModelFolderError("bad_index", f"{index_path} has no readable weight_map") from error
        for name in sorted(names):
            if len(name) > MAX_NAME_CHARS or "/" in name or "\0" in name:
                raise ModelFolderError("bad_index", f"{index_path} names a file outside of its folder")
            if not (folder / name).is_file():
                raise ModelFolderError("missing_file", f"{folder / name} is missing; {index_path.name} names it")
    if not found:
        raise ModelFolderError("no_weights", f"{folder} has no weights: no file model*.safetensors")
    for file in found:
        if not file.is_file():
            raise ModelFolderError("unreadable", f"{file} is no file")
    if sum(file.stat().st_size for file in found) > MAX_WEIGHT_BYTES:
        raise ModelFolderError("bad_weights", f"the weights in {folder} claim more than 16 TiB")
    return found


def _read_json(path: Path, code: str) -> Any:
    """Of a file of some kilobytes. Raises ModelFolderError."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ModelFolderError("unreadable", f"{path} is no file")
        with path.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ModelFolderError(code, f"{path} is larger than {MAX_CONFIG_BYTES // 1024**2} MiB")
        return json.loads(data)
    except OSError as error:
        raise ModelFolderError("unreadable", f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(code, f"{path} is not JSON: {error}") from error


class _Tensor(msgspec.Struct):
    """Of a header's entry what is needed here; the rest is not even decoded."""

    data_offsets: tuple[int, int] | None = None


def _read_header(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, max(size - 8, 0)):
            raise ModelFolderError("truncated", f"{file} is not a whole safetensors file ({size} bytes)")
        try:
            header = from_json(stream.read(length), dict[str, _Tensor])
        except WrongShapeError as error:
            raise ModelFolderError("truncated", f"{file} has a damaged safetensors header: {error}") from None
        except DecodingError as error:
            text = f"{file} has a safetensors header that is not JSON: {error}"
            raise ModelFolderError("truncated", text) from None
    header.pop("__metadata__", None)
    if not _is_sane(header):
        raise ModelFolderError("truncated", f"{file} has a damaged safetensors header")
    spans = {name: {"data_offsets": tensor.data_offsets} for name, tensor in header.items()}
    end = max((tensor.data_offsets[1] for tensor in header.values() if tensor.data_offsets), default=0)
    if 8 + length + end > size:
        raise ModelFolderError(
            "truncated", f"{file} is truncated: it has {size} bytes and should have {8 + length + end}"
        )
    return spans


def _is_sane(header: Mapping[str, _Tensor]) -> bool:
    """One after the other, as the format has them: tensors that lie over each other could be more than the file."""
    spans = sorted(tensor.data_offsets for tensor in header.values() if tensor.data_offsets is not None)
    if len(header) > MAX_TENSORS or len(spans) < len(header) or any(len(name) > MAX_NAME_CHARS for name in header):
        return False
    reached = 0
    for begin, end in spans:
        if not reached <= begin <= end:
            return False
        reached = end
    return True


def _tensor_sizes(headers: Mapping[Path, dict[str, Any]]) -> dict[str, int]:
    return {
        name: int(entry["data_offsets"][1]) - int(entry["data_offsets"][0])
        for header in headers.values()
        for name, entry in header.items()
    }


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Models of several modes keep the language model's settings one level down."""
    for key in ("text_config", "language_config", "llm_config"):
        inner = config.get(key)
        if isinstance(inner, dict):
            return {**config, **inner}
    return config


def _whole(value: object) -> int | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return cast("int", value) if is_whole and 0 < cast("int", value) <= MAX_WHOLE else None


def _layer_count(folder: Path, config: dict[str, Any]) -> int:
    for key in LAYER_COUNT_KEYS:
        count = _whole(config.get(key))
        if count is not None:
            return count
    blocks = config.get("block_configs")
    if isinstance(blocks, list) and blocks:
        return len(blocks)
    raise ModelFolderError(
        "bad_config", f"{folder / 'config.json'} does not say how many layers there are ({LAYER_COUNT_KEYS[0]})"
    )


def _layer_bytes(folder: Path, sizes: Mapping[str, int], total_layers: int) -> tuple[int, ...]:
    """The list of modules that holds the most bytes is the language model's; others are towers and experts."""
    lists: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for name, size in sizes.items():
        match = LAYER_INDEX.match(name)
        if match is not None:
            lists[match[1] or ""][int(match[2])] += size
    if not lists:
        raise ModelFolderError("bad_weights", f"the weights in {folder} have no layers")
    layers = max(lists.values(), key=lambda per_index: sum(per_index.values()))
    missing = next((index for index in range(total_layers) if index not in layers), None)
    if missing is not None:
        raise ModelFolderError(
            "layers_differ",
            f"{folder / 'config.json'} says {total_layers} layers, but the weights have none for layer"
            f" {missing} (they hold {len(layers)})",
        )
    return tuple(layers[index] for index in range(total_layers))


def _kv_bytes_per_token(config: dict[str, Any]) -> int:
    latent = _whole(config.get("kv_lora_rank"))
    if latent is not None:
        return (latent + (_whole(config.get("qk_rope_head_dim")) or 0)) * KV_BYTES_PER_VALUE
    heads = _whole(config.get("num_attention_heads")) or _whole(config.get("n_head"))
    if heads is None:
        return 0  # a state-space model: nothing in it grows with the context
    kv_heads = _whole(config.get("num_key_value_heads")) or heads
    head_dim = _whole(config.get("head_dim")) or _hidden_size(config) // heads
    return 2 * kv_heads * head_dim * KV_BYTES_PER_VALUE


def _hidden_size(config: dict[str, Any]) -> int:
    return _whole(config.get("hidden_size")) or _whole(config.get("n_embd")) or 0


def _kv_windows(config: dict[str, Any], total_layers: int) -> tuple[int, ...]:
    """As the config tells which layers attend to how much. Where it does not, every layer attends to everything:
    so do mlx-lm's models of that kind.
    """
    window = _whole(config.get("sliding_window"))
    interval = _whole(config.get("full_attention_interval"))
    pattern = _whole(config.get("sliding_window_pattern"))
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == total_layers:
        local = {"sliding_attention": window or WHOLE_CONTEXT, "full_attention": WHOLE_CONTEXT}
        return tuple(local.get(str(kind), 0) for kind in kinds)
    if interval is not None:
        return tuple(0 if (index + 1) % interval else WHOLE_CONTEXT for index in range(total_layers))
    if pattern is not None and window is not None:
        return tuple(window if (index + 1) % pattern else WHOLE_CONTEXT for index in range(total_layers))
    return (_whole(config.get("attention_window_size")) or WHOLE_CONTEXT,) * total_layers


def _max_context_tokens(config: dict[str, Any]) -> int:
    for key in CONTEXT_KEYS:
        value = config.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
            return int(min(value, MAX_WHOLE))  # JSON has whole numbers that no float holds
    return DEFAULT_CONTEXT_TOKENS


def _fingerprint(folder: Path, headers: Mapping[Path, dict[str, Any]]) -> str:
    """Names the content without reading it all: small files whole, each weight file's size, header and samples."""
    digest = hashlib.sha256()
    for name in WHOLE_FILES:
        path = folder / name
        there = path.is_file()
        size = path.stat().st_size if there else 0
        if size > MAX_TEXT_FILE_BYTES:
            raise ModelFolderError("bad_config", f"{path} is larger than {MAX_TEXT_FILE_BYTES // 1024**2} MiB")
        digest.update(f"{name} {there} {size} ".encode() + (path.read_bytes() if there else b""))
    spots = [(file, offset) for file, header in sorted(headers.items()) for offset in _spots(header)]
    wanted = set(spots[:: 1 + len(spots) // MAX_SAMPLES])
    for file in sorted(headers):
        with file.open("rb") as stream:
            start = stream.read(8)
            header = stream.read(struct.unpack("<Q", start)[0])
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + header)
            for offset in _spots(headers[file]):
                if (file, offset) in wanted:
                    stream.seek(len(start) + len(header) + offset)
                    digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def _spots(header: dict[str, Any]) -> list[int]:
    """Where the samples of a file begin, counted from the end of its header: in the middle of equal parts of each
    tensor.
    """
    spots = []
    for begin, end in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        parts = 1 + (end - begin) // SAMPLE_EVERY_BYTES
        length = (end - begin) // parts
        spots += [begin + part * length + max(0, length - SAMPLE_BYTES) // 2 for part in range(parts)]
    return spots
