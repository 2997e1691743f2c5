"""From a model folder to a stage in memory: only this rank's layers are ever read.

Decides: what is wrong with a folder, in one line with a stable code. Called by worker.py on the MLX thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx_lm.utils import load_config, load_model

from exoengine.fit import check_fit
from exoengine.model_folder import ModelFolderError, ModelSummary, inspect
from exoengine.stages import NotSplittableError, Stage, parameter_bytes
from exoengine.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What a rank holds after a load."""

    folder: Path
    summary: ModelSummary
    stage: Stage
    tokenizer: Tokenizer
    weight_bytes: int
    max_context_tokens: int


def load(
    folder: Path, first: int, last: int, max_context_tokens: int, kv_bits: int, progress: Callable[[int, int], None]
) -> LoadedModel:
    """Reads layers [first, last) and whatever else the stage runs. Raises ModelFolderError."""
    summary = inspect(folder)
    if not 0 <= first < last <= summary.total_layers:
        raise ModelFolderError(
            "bad_span", f"layers {first} to {last} are asked for; the model has {summary.total_layers}"
        )
    wanted = min(max_context_tokens, summary.max_context_tokens)
    check_fit(folder, summary, first, last, wanted, kv_bits, psutil.virtual_memory().available)
    before = mx.get_active_memory()
    model = _build(folder, summary)
    stage = _divide(model, folder, summary, first, last)
    sizes = [parameter_bytes(layer) for layer in stage.span]
    done = 0
    for layer, size in zip(stage.span, sizes, strict=True):
        _evaluate(folder, layer.parameters())
        done += size
        progress(done, sum(sizes))
    _probe(stage, folder)
    mx.clear_cache()
    limit = summary.max_context_tokens
    return LoadedModel(
        folder=folder,
        summary=summary,
        stage=stage,
        tokenizer=Tokenizer(folder, load_config(folder).get("eos_token_id")),
        weight_bytes=mx.get_active_memory() - before,
        max_context_tokens=min(max_context_tokens, limit) if max_context_tokens else limit,
    )


def _build(folder: Path, summary: ModelSummary) -> Any:
    try:
        model, _ = load_model(folder, lazy=True, strict=True)
    except ValueError as error:
        text = _first_line(error)
        if "not supported" in text:
            raise ModelFolderError(
                "unknown_architecture", f"{folder}: mlx-lm has no architecture {summary.model_type!r}"
            ) from error
        if "model_file" in text or "custom" in text:
            raise ModelFolderError(
                "custom_code", f"{folder} wants to run its own Python code ({text}); that is not allowed"
            ) from error
        raise ModelFolderError("weights_differ", f"{folder}: config and weights differ: {text}") from error
    except ModuleNotFoundError as error:
        raise ModelFolderError("unknown_architecture", f"{folder}: {_first_line(error)}") from error
    except (RuntimeError, OSError) as error:
        raise ModelFolderError("unreadable", f"{folder}: {_first_line(error)}") from error
    except (TypeError, KeyError, AttributeError, IndexError, AssertionError, ZeroDivisionError) as error:
        raise ModelFolderError(
            "bad_config",
            f"{folder / 'config.json'} does not describe a {summary.model_type} model:"
            f" {type(error).__name__}: {_first_line(error)}",
        ) from error
    if len(model.layers) != summary.total_layers:
        raise ModelFolderError(
            "layers_differ",
            f"{folder / 'config.json'} says {summary.total_layers} layers; the model it makes has"
            f" {len(model.layers)}",
        )
    return model


def _divide(model: Any, folder: Path, summary: ModelSummary, first: int, last: int) -> Stage:
    try:
        return Stage(model, first, last)
    except NotSplittableError as error:
        raise ModelFolderError(
            "not_splittable",
            f"{summary.model_type} cannot be divided at layers {first} and {last}: {error}; run it on one node",
        ) from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise ModelFolderError(
            "weights_differ", f"{folder}: config and weights differ: {_first_line(error)}"
        ) from error


def _evaluate(folder: Path, parameters: Any) -> None:
    try:
        mx.eval(parameters)
    except RuntimeError as error:
        raise ModelFolderError("unreadable", f"{folder}: a weight cannot be read: {_first_line(error)}") from error


def _probe(stage: Stage, folder: Path) -> None:
    try:
        stage.probe()
    except NotSplittableError as error:
        raise ModelFolderError(
            "not_splittable", f"{folder}: the model cannot be divided here: {error}; run it on one node"
        ) from error
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ModelFolderError(
            "weights_differ", f"{folder}: the model does not run: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
