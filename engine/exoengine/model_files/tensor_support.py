"""What mlx-lm's source and a model's config tell: is the architecture known, can it be divided into tensor shares?

Reads them without importing MLX: the daemon plans with it. memory_fit.py judges it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_SHARD: Final = re.compile(r"^    def shard\(self", re.MULTILINE)
TYPES_KEPT: Final = 64
"""Of models that were looked at: more than a disk holds at a time, and a config may name anything."""
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads")


@functools.lru_cache(maxsize=TYPES_KEPT)
def can_shard(model_type: str) -> bool:
    """Has mlx-lm's module for it a `shard`?"""
    folder = _mlx_lm()
    if folder is None or not re.fullmatch(r"[\w-]+", model_type):
        return False
    try:
        source = (folder / "models" / f"{_renamed(folder).get(model_type, model_type)}.py").read_text("utf-8")
    except OSError:
        return False
    return _SHARD.search(source) is not None


@functools.lru_cache(maxsize=TYPES_KEPT)
def is_known(model_type: str) -> bool:
    """Has mlx-lm a module for it, by this name or by another? True where its source is not found: a load tells."""
    folder = _mlx_lm()
    if folder is None or not re.fullmatch(r"[\w-]+", model_type):
        return folder is None
    try:
        named = f'"{model_type}"' in (folder / "utils.py").read_text("utf-8")
    except OSError:
        return True
    try:
        return named or (folder / "models" / f"{model_type}.py").is_file()
    except OSError:  # no file has so long a name
        return False


def head_counts(config: Mapping[str, Any]) -> tuple[int, ...]:
    """What the number of ranks must divide. Latent attention has no heads of keys and values."""
    wanted = _HEADS if config.get("kv_lora_rank") else (*_HEADS, "num_key_value_heads")
    found = (config.get(key) for key in wanted)
    return tuple(count for count in found if isinstance(count, int) and count > 0)


def _mlx_lm() -> Path | None:
    spec = importlib.util.find_spec("mlx_lm")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@functools.cache
def _renamed(folder: Path) -> Mapping[str, str]:
    """Model types that mlx-lm runs with another one's module."""
    try:
        tree = ast.parse((folder / "utils.py").read_text("utf-8"))
    except (OSError, SyntaxError):
        return {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "MODEL_REMAPPING" for target in node.targets
        ):
            found = ast.literal_eval(node.value)
            return found if isinstance(found, dict) else {}
    return {}
