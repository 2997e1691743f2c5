"""What the rank asks of the engine host. Frozen values; deciding is done in `core/engine/rank.py`."""

from __future__ import annotations

import msgspec

from exod.core.engine.engine_messages import RankStatus
from exoengine.model_files.memory_fit import ModelSizes
from exoengine.protocol import ToWorker


class ResolveModel(msgspec.Struct, frozen=True):
    """Command: find (or download) this model and read what it is."""

    model: str


class StopSearch(msgspec.Struct, frozen=True):
    """Command: nobody wants the model any more that is being found or downloaded."""


class StartWorker(msgspec.Struct, frozen=True):
    """Command: adopt the process that an earlier daemon left, or start one."""


class KillWorker(msgspec.Struct, frozen=True):
    text: str


class WakeWorker(msgspec.Struct, frozen=True):
    """Command: continue the process, if it was stopped."""


class LeaveWorker(msgspec.Struct, frozen=True):
    """Command: nothing is asked of the worker any more: let it leave, then end."""


class TellWorker(msgspec.Struct, frozen=True):
    message: ToWorker


class Report(msgspec.Struct, frozen=True):
    """Command: tell every node, this one included."""

    status: RankStatus


class RingPortTaken(msgspec.Struct, frozen=True):
    """Command: someone else has the port that the plan gives this rank: announce another one."""

    port: int


class Story(msgspec.Struct, frozen=True):
    """Command: an event of the contract."""

    type: str
    data: dict[str, object]


RankCommand = (
    ResolveModel
    | StopSearch
    | StartWorker
    | KillWorker
    | WakeWorker
    | LeaveWorker
    | TellWorker
    | Report
    | RingPortTaken
    | Story
)


class ModelFacts(msgspec.Struct, frozen=True):
    """What is known of a model before it is loaded."""

    model: str
    folder: str
    sizes: ModelSizes
