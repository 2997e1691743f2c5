"""From a model folder to a stage in memory: only this rank's layers are ever read, and none that is there already.

Decides: what is wrong with a folder, in one line with a stable code.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx.utils import tree_flatten
from mlx_lm.utils import load_config, load_model

from exoengine.model import gpu_memory
from exoengine.model.cache_rollback import NotQuantisableError, Quantisation
from exoengine.model.stages import NotSplittableError, Stage, parameter_bytes
from exoengine.model.tensor_share import NotDivisibleError, divide, regroup
from exoengine.model.text import Tokenizer
from exoengine.model_files.kv_room import KvRoom
from exoengine.model_files.memory_fit import Fit, SpanNeeds, SpanTable, gib, judge_fit, why_not_divisible
from exoengine.model_files.model_folder import ModelFolderError, ModelSummary, inspect
from exoengine.model_files.wired_memory import wired_limit
from exoengine.protocol import Load


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What a rank holds after a load."""

    folder: Path
    summary: ModelSummary
    stage: Stage
    tokenizer: Tokenizer
    weight_bytes: int
    max_context_tokens: int
    kv_room: KvRoom
    wired_bytes: int = 0
    warning: str = ""
    parts: int = 1
    """Of each of its layers it has one of so many parts; then `regroup` before it is run, and after."""
    _stand_in: Any = None

    @property
    def is_divided(self) -> bool:
        return self.parts > 1

    def regroup(self, group: Any) -> None:
        """Its layers add up over `group`; None: over none that works, until the next is formed."""
        if self.is_divided:
            regroup(self.stage.model, self._stand_in if group is None else group)


class LoadCalledOffError(Exception):
    """Nobody wants any more what is being loaded."""


class HeldLayers:
    """The layers of one model that are in memory, from one load to the next.

    A rank is given more layers when another is gone, and has to give them back when it returns: what both shares
    have in common is not read again, whether the load between came to its end or was called off.
    """

    def __init__(self) -> None:
        self._fingerprint = ""
        self._parameters: dict[int, Any] = {}
        """By the layer's index; the same arrays as the stage's."""
        self.layer_s = 0.0
        """How long it took to read one, the last time that any was read."""

    def keep(self, fingerprint: str, first: int, last: int) -> None:
        """Lets go of all but these layers of this model, or of this part of one."""
        if fingerprint != self._fingerprint:
            self._fingerprint = fingerprint
            self._parameters.clear()
        for index in [index for index in self._parameters if not first <= index < last]:
            del self._parameters[index]

    def nbytes(self) -> int:
        return sum(array.nbytes for tree in self._parameters.values() for _, array in tree_flatten(tree))

    def put_into(self, index: int, layer: Any) -> bool:
        """Gives a new layer the parameters that are held; False where they are not."""
        if index not in self._parameters:
            return False
        layer.update(self._parameters[index])
        return True

    def take(self, index: int, layer: Any) -> None:
        self._parameters[index] = layer.parameters()


def load(
    asked: Load, progress: Callable[[int, int], None], held: HeldLayers | None = None, native: Any = None
) -> LoadedModel:
    """Reads the layers that are asked for and not held, and whatever else the stage runs. Raises ModelFolderError,
    and whatever `progress` raises, which is called after each layer. What was read until then is held. `native` is
    the native group's module, without which no rank has a part of a layer.
    """
    held = held or HeldLayers()
    folder, first, last = Path(asked.folder), asked.first_layer, asked.last_layer
    summary = inspect(folder)
    if not 0 <= first < last <= summary.total_layers:
        raise ModelFolderError(
            "bad_span", f"layers {first} to {last} are asked for; the model has {summary.total_layers}"
        )
    held.keep(f"{summary.fingerprint} {asked.part}/{asked.parts}", first, last)
    mx.clear_cache()  # of what was let go: memory that MLX keeps for itself is not available to be counted
    recommended = gpu_memory.recommended_bytes()
    warning = check_fit(asked, summary, psutil.virtual_memory().available + held.nbytes(), recommended)
    # Before the first evaluation: what is allocated earlier is not wired.
    wired_bytes = gpu_memory.wire(wired_limit(recommended, _needs_at_most(asked, summary).total_bytes))
    before = mx.get_active_memory() - held.nbytes()
    model = _build(folder, summary)
    stand_in = _take_part(model, asked, summary, native) if asked.parts > 1 else None
    stage = _divide(model, folder, summary, first, last)
    if asked.parts > 1:
        stage.cut_between_layers()
    _read_layers(stage, asked, held, progress)
    if asked.parts > 1 and not stage.is_whole:  # sums that fail would be zeros, and hide what crosses the cut
        regroup(model, native.make(0, 1, {}, spin_us=0, deadline_s=1.0)[0])
    _probe(stage, folder)
    if asked.kv_bits:
        _quantise(stage, summary, Quantisation(asked.kv_bits, asked.kv_group_size))
    if asked.parts > 1:
        regroup(model, stand_in)
    mx.clear_cache()
    tokenizer = Tokenizer(folder, load_config(folder).get("eos_token_id"))
    tokenizer.prepare_grammars(summary.vocab_size)
    return LoadedModel(
        folder=folder,
        summary=summary,
        stage=stage,
        tokenizer=tokenizer,
        weight_bytes=mx.get_active_memory() - before,
        max_context_tokens=min(asked.max_context_tokens or summary.max_context_tokens, summary.max_context_tokens),
        wired_bytes=wired_bytes,
        warning=warning,
        parts=asked.parts,
        kv_room=_kv_room(asked, summary, recommended),
        _stand_in=stand_in,
    )


def _read_layers(stage: Stage, asked: Load, held: HeldLayers, progress: Callable[[int, int], None]) -> None:
    """Those that are not held."""
    folder, sizes = Path(asked.folder), [parameter_bytes(layer) for layer in stage.span]
    done, read, reading_s = 0, 0, 0.0
    for index, (layer, size) in enumerate(zip(stage.span, sizes, strict=True), asked.first_layer):
        if not held.put_into(index, layer):
            begun = time.monotonic()
            if asked.parts > 1:
                _read_parts(folder, layer.parameters())
            _evaluate(folder, layer.parameters())
            held.take(index, layer)
            read, reading_s = read + 1, reading_s + time.monotonic() - begun
            held.layer_s = reading_s / read
        done += size
        progress(done, sum(sizes))


def check_fit(asked: Load, summary: ModelSummary, available: int, recommended: int = 0) -> str:
    """A warning where it may not fit, else nothing. Raises ModelFolderError `does_not_fit` with the sum."""
    needs = _needs(asked, summary, asked.max_context_tokens)
    match judge_fit(needs.total_bytes, available, recommended):
        case Fit.FITS:
            return ""
        case Fit.UNCERTAIN:
            return f"{needs.text}; {gib(available)} are free now, {gib(recommended)} can be used: it may be slow"
    given = f"a GPU can use {gib(recommended)} here" if recommended else f"{gib(available)} are available"
    raise ModelFolderError(
        "does_not_fit",
        f"{asked.folder}: {needs.text}; {given}:"
        f" give this node fewer layers{', a shorter context' if needs.cache_bytes else ''} or more memory",
    )


def _kv_room(asked: Load, summary: ModelSummary, recommended: int) -> KvRoom:
    """What a GPU may use beside the weights, which are in memory; without one what the system calls available."""
    free = recommended - mx.get_active_memory() if recommended else psutil.virtual_memory().available
    return KvRoom(max(0, free), lambda tokens: _needs(asked, summary, tokens).cache_bytes)


def _needs_at_most(asked: Load, summary: ModelSummary) -> SpanNeeds:
    """With the longest context that may come."""
    return _needs(asked, summary, asked.max_context_tokens or summary.max_context_tokens)


def _needs(asked: Load, summary: ModelSummary, context_tokens: int) -> SpanNeeds:
    table = SpanTable(summary, context_tokens, asked.kv_bits, asked.kv_group_size, asked.parts)
    return table.needs(asked.first_layer, asked.last_layer)


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
    except (TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, MemoryError) as error:
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


def _take_part(model: Any, asked: Load, summary: ModelSummary, native: Any) -> Any:
    """Gives the group that the model was divided with: it has no connections, and its operations fail."""
    try:
        if native is None:
            raise NotDivisibleError("the native group is not ready on this node")
        if reason := why_not_divisible(summary.model_type, summary, asked.parts):
            raise NotDivisibleError(reason)
        group, _ = native.make(asked.part, asked.parts, {}, spin_us=0, deadline_s=1.0)
        divide(model, group)
    except NotDivisibleError as error:
        raise ModelFolderError(
            "not_divisible",
            f'{summary.model_type} cannot run in tensor parallelism: {error}; set engine.parallel = "pipeline"',
        ) from error
    return group


def _read_parts(folder: Path, parameters: Any) -> None:
    """Each is a part of a tensor that is read for it: only one whole tensor may be in memory at a time."""
    for _, array in tree_flatten(parameters):
        _evaluate(folder, array)
        mx.clear_cache()


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


def _quantise(stage: Stage, summary: ModelSummary, how: Quantisation) -> None:
    """From here on the stage makes quantised caches, and has shown that it runs with them."""
    stage.quantisation = how
    try:
        stage.probe()
    except (NotQuantisableError, NotSplittableError) as error:
        reason = str(error)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = f"it does not run with {how.bits} bits in groups of {how.group_size}: {_first_line(error)}"
    else:
        return
    raise ModelFolderError(
        "kv_bits_unsupported",
        f"the KV cache of {summary.model_type} cannot be quantised: {reason}; set engine.kv_bits = 0",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
