"""What this rank's process was asked to load, and what it holds.

Decides which of the worker's answers belongs to what was asked; never what is asked for.
"""

from __future__ import annotations

from exod.core.engine.engine_events import EmitEvent, TellWorker
from exod.core.engine.rank.worker_life import LOADING, WorkerLife
from exoengine.protocol import NOTHING_MEASURED, Hello, Load, Loaded, LoadFailed, StepCosts


class WorkerLoad:
    def __init__(self) -> None:
        self.asked: Load | None = None
        self.held: Loaded | None = None
        self.progress = (0, 0)
        """Bytes: done, of all."""

    @property
    def is_under_way(self) -> bool:
        return self.asked is not None and self.held is None

    @property
    def wired_bytes(self) -> int:
        return self.held.wired_bytes if self.held is not None else 0

    @property
    def costs(self) -> StepCosts:
        return self.held.step_costs if self.held is not None else NOTHING_MEASURED

    @property
    def warning(self) -> str:
        """Why what is held may be slow or fail; empty where nothing says so."""
        return self.held.warning if self.held is not None else ""

    def ask(self, load: Load) -> None:
        self.asked, self.held = load, None

    def forget(self) -> None:
        """The process is gone, or must load again before it is of use."""
        self.asked = self.held = None

    def adopt(self, hello: Hello, total_layers: int | None) -> bool:
        """What a process holds that outlived its daemon. True where it holds anything."""
        if hello.load is None or hello.fingerprint is None:
            return False
        load = self.asked = hello.load
        self.held = Loaded(
            folder=load.folder,
            layers=(load.first_layer, load.last_layer),
            total_layers=total_layers if total_layers is not None else load.last_layer,
            fingerprint=hello.fingerprint,
            weight_bytes=0,
            load_s=hello.load_s,
            max_context_tokens=0,
            layer_s=hello.layer_s,
            wired_bytes=hello.wired_bytes,
            part=load.part,
            parts=load.parts,
            step_costs=hello.step_costs,
        )
        return True

    def loaded(self, loaded: Loaded) -> bool:
        """False where this is not what was asked for."""
        asked = self.asked
        if asked is None or (loaded.folder, loaded.layers, loaded.part, loaded.parts) != (
            asked.folder,
            (asked.first_layer, asked.last_layer),
            asked.part,
            asked.parts,
        ):
            return False
        self.held = loaded
        return True

    def failed(self, failed: LoadFailed) -> bool:
        """False where this is not what was asked for."""
        if self.asked is None or failed.folder != self.asked.folder or self.held is not None:
            return False
        self.asked = None
        return True


def load_layers(share: Load, load: WorkerLoad, worker: WorkerLife, now: float) -> list[TellWorker]:
    load.ask(share)
    worker.loading = True
    worker.expect(LOADING, now)
    return [TellWorker(share)]


def loaded_event(model: str, loaded: Loaded) -> EmitEvent:
    data: dict[str, object] = {"model": model, "layers": list(loaded.layers), "load_s": round(loaded.load_s, 3)}
    return EmitEvent("engine.loaded", {**data, "weight_bytes": loaded.weight_bytes})
