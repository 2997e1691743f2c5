"""Wiring before the first evaluation, on a stand-in for MLX's Metal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exoengine.embedded import model_folder
from exoengine.model import gpu_memory, loading
from exoengine.model.loading import load
from exoengine.model_files.model_folder import ModelFolderError
from exoengine.protocol import Load

GIB = 1 << 30


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A GPU that recommends 10 GiB, and what is asked of MLX in its order."""
    seen: list[Any] = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 10 * GIB})
    monkeypatch.setattr(mx, "set_wired_limit", seen.append)
    evaluate = loading._evaluate
    monkeypatch.setattr(loading, "_evaluate", lambda *given: (seen.append("evaluated"), evaluate(*given)))
    return seen


def asked(**changes: Any) -> Load:
    return Load(**({"folder": str(model_folder("embedded:count")), "first_layer": 0, "last_layer": 4} | changes))


def test_a_load_wires_before_its_first_evaluation_and_says_how_much(calls: list[Any]) -> None:
    held = load(asked(), lambda *_: None)
    assert isinstance(calls[0], int)
    assert set(calls[1:]) == {"evaluated"}
    assert GIB < calls[0] < 10 * GIB
    assert (held.wired_bytes, held.warning) == (calls[0], "")


def test_where_less_is_free_than_needed_it_is_tried_with_a_warning(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading.psutil, "virtual_memory", lambda: type("Free", (), {"available": 1})())
    held = load(asked(), lambda *_: None)
    assert "10.00 GiB can be used: it may be slow" in held.warning


def test_more_than_is_recommended_is_refused_with_the_sum(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 1024})
    with pytest.raises(ModelFolderError, match=r"layers 0 to 3 need .* a GPU can use 0\.00 GiB here") as refused:
        load(asked(), lambda *_: None)
    assert refused.value.code == "does_not_fit"
    assert calls == []


def test_a_limit_that_mlx_refuses_leaves_memory_unwired(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(limit: int) -> None:
        raise ValueError("larger than the maximum")

    monkeypatch.setattr(mx, "set_wired_limit", refuse)
    assert gpu_memory.wire(GIB) == 0


def test_without_metal_nothing_is_wired(tmp_path: Path) -> None:
    if mx.metal.is_available():
        pytest.skip("this machine has Metal")
    assert gpu_memory.recommended_bytes() == 0
    assert load(asked(), lambda *_: None).wired_bytes == 0
