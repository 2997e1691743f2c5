"""Plans, orders and words of a worker, as tests of the engine's cores need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from exod.core.engine.engine_events import TellWorker
from exod.core.engine.engine_messages import BeginRequest, RankPhase, RankStatus, SubmitRequest, generation_id
from exod.core.engine.rank.rank import RankCommand
from exod.core.engine.rank.rank_status import ReportStatus
from exod.model import Edge, Epoch, Kind, Member, MeshPlan, NodeId, path_id
from exoengine.model_files.memory_fit import WHOLE_CONTEXT, ModelSizes
from exoengine.protocol import (
    ActiveRequest,
    Finished,
    GenerationRequest,
    Heartbeat,
    Hello,
    Load,
    Loaded,
    TokenOut,
    ToWorker,
)

A, B, C = (NodeId(f"{number:016x}") for number in (1, 2, 3))
FOLDER = "/models/m"
LAYERS = 12

Kind_ = TypeVar("Kind_")


def a_plan(*ring: NodeId, number: int = 1, model: str = "m", split: str | tuple[int, ...] = "even") -> MeshPlan:
    pairs = zip(ring, ring[1:] + ring[:1], strict=True) if len(ring) > 1 else ()
    edges = tuple(
        Edge(
            source,
            target,
            path_id(address(min(source, target)), address(max(source, target))),
            "b0",
            address(source),
            "b0",
            address(target),
            52420,
            Kind.THUNDERBOLT,
        )
        for source, target in pairs
    )
    members = tuple(Member(node, 1) for node in (A, B, C))
    weights = (1,) * len(ring)
    return MeshPlan(Epoch(number, 1), A, members, ring, edges, model, split, weights, f"plan{number}")


def sizes(layers: int = LAYERS, layer_bytes: int = 0) -> ModelSizes:
    return ModelSizes(
        layer_bytes=(layer_bytes,) * layers,
        other_bytes=0,
        kv_bytes_per_token=0,
        kv_windows=(WHOLE_CONTEXT,) * layers,
        max_context_tokens=4096,
    )


def address(node: NodeId) -> str:
    return f"10.0.0.{int(node, 16)}"


def hello(requests: Sequence[ActiveRequest] = (), layers: tuple[int, int] | None = None, **fields: object) -> Hello:
    values: dict[str, object] = {
        "protocol": 1,
        "pid": 7,
        "versions": {"mlx": "1"},
        "load": Load(FOLDER, *layers) if layers else None,
        "fingerprint": "f" if layers else None,
        "plan_hash": None,
        "attempt": 0,
        "formed": False,
        "requests": tuple(requests),
    }
    return Hello(**{**values, **fields})  # type: ignore[arg-type]


def loaded(first: int, last: int, layer_s: float = 0.01) -> Loaded:
    return Loaded(FOLDER, (first, last), LAYERS, "f", 1, 0.1, 4096, layer_s)


def beat(state: str = "ready") -> Heartbeat:
    return Heartbeat(state, 0, 0.0, "fast", "", 0.0, 0.0, 0.0, 0, 0)  # type: ignore[arg-type]


def begin(
    order: int, name: str = "r", origin: NodeId = A, tokens: tuple[int, ...] = (), ended: int = 0
) -> BeginRequest:  # fmt: skip
    """`ended`: up to which order all requests have."""
    request = GenerationRequest(generation_id(name, order), 10, prompt="x")
    return BeginRequest(A, order, origin, request, tokens, ended_order=ended)


def submit(name: str, origin: NodeId = B, tokens: tuple[int, ...] = ()) -> SubmitRequest:
    return SubmitRequest(origin, GenerationRequest(name, 10, prompt="x"), tokens)


def token(name: str, index: int) -> TokenOut:
    return TokenOut(name, index, 100 + index, "t")


def finished(name: str, reason: str = "stop") -> Finished:
    return Finished(name, reason, "", 1, 0, 3, 0.0, 0.0)  # type: ignore[arg-type]


def status(
    sender: NodeId,
    phase: RankPhase = RankPhase.FORMED,
    attempt: int = 1,
    plan: str = "plan1",
    begun: int = 0,
    finished: int = 0,
    seq: int = 1,
    under_way: tuple[int, ...] | None = None,
    **fields: object,
) -> RankStatus:
    """All up to `finished` has ended; `begun`, where it is above, is under way."""
    going = ((begun,) if begun > finished else ()) if under_way is None else under_way
    return RankStatus(
        sender,
        1,
        seq,
        phase,
        plan_hash=plan,
        attempt=attempt,
        begun_order=begun,
        finished_order=finished,
        under_way=going,
        **fields,  # type: ignore[arg-type]
    )


def told(commands: Sequence[RankCommand]) -> list[ToWorker]:
    """What of these commands goes to the worker."""
    return [command.message for command in commands if isinstance(command, TellWorker)]


def only(commands: Sequence[object], kind: type[Kind_]) -> list[Kind_]:
    return [command for command in commands if isinstance(command, kind)]


def phases(commands: Sequence[RankCommand]) -> list[RankPhase]:
    return [command.status.phase for command in commands if isinstance(command, ReportStatus)]
