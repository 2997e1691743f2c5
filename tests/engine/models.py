"""Tiny models with random weights, made as folders that mlx-lm itself would load, and what mlx-lm makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load_model

from exoengine.model.sampling import Sampler
from exoengine.protocol import Sampling

VOCAB = 260
"""256 bytes, and four special tokens."""

EOS = 257

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 5, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": VOCAB,
    "tie_word_embeddings": False, "rope_theta": 10000.0, "max_position_embeddings": 2048,
}  # fmt: skip

QWEN2 = {**LLAMA, "model_type": "qwen2", "num_hidden_layers": 4, "tie_word_embeddings": True}


def write_tokenizer(folder: Path) -> None:
    """Bytes are tokens, so that every text has tokens and characters can span several of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    for special in ("<unk>", "<eos>", "<pad>", "<extra>"):
        vocabulary[special] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_model(
    folder: Path, config: dict[str, Any], seed: int = 0, bits: int = 0, dtype: Any = mx.float32
) -> Path:
    """Random weights for `config`. Nothing ends an answer where `config` names no `eos_token_id`."""
    folder.mkdir(parents=True)
    mx.random.seed(seed)
    kind, arguments = _get_classes(config)
    model = kind(arguments.from_dict(config))
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
        config = {**config, "quantization": {"group_size": 32, "bits": bits}}
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


_known: dict[Any, list[int]] = {}


def undisturbed(
    folder: Path, prompt: Sequence[int], steps: int, sampling: Sampling | None = None, chunk: int = 512,
    kv_bits: int = 0, kv_group: int = 64,
) -> list[int]:  # fmt: skip
    """What a single process running mlx-lm's model gives, with the same keys for the same draws."""
    asked = (folder, tuple(prompt), steps, repr(sampling), chunk, kv_bits, kv_group)
    if asked not in _known:
        _known[asked] = _generated(folder, prompt, steps, sampling, chunk, kv_bits, kv_group)
    return _known[asked]


def _generated(
    folder: Path, prompt: Sequence[int], steps: int, sampling: Sampling | None, chunk: int, kv_bits: int,
    kv_group: int,
) -> list[int]:  # fmt: skip
    model, config = load_model(folder)
    cache = make_prompt_cache(model)
    if kv_bits:
        # As mlx-lm's own generate_step does with kv_bits and quantized_kv_start=0: states without keys stay.
        cache = [
            one.to_quantized(group_size=kv_group, bits=kv_bits) if hasattr(one, "to_quantized") else one
            for one in cache
        ]
    sampler = Sampler(sampling or Sampling(), config.get("vocab_size", VOCAB))
    history, end = list(prompt), len(prompt) - 1
    for start in range(0, end, chunk):
        model(mx.array([history[start : min(start + chunk, end)]]), cache=cache)
        mx.eval([one.state for one in cache])
    for step in range(steps):
        logits = model(mx.array([history[-1:]]), cache=cache)
        token, _ = sampler.draw(logits[:, -1, :], history, step)
        history.append(int(token.item()))
    return history[len(prompt) :]
