"""Members of the cluster are believed about themselves, and about nothing else."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.engine.engine_events import (
    ClientAsked,
    DeliverError,
    DeliverToken,
    EngineCommand,
    EngineMessageReceived,
    LogIgnored,
    PlanCommitted,
    SendTo,
)
from exod.core.engine.engine_messages import (
    BeginRequest,
    Begun,
    CancelRequest,
    EngineMessage,
    FormOrder,
    Queued,
    RelayAgain,
    RelayedOutput,
    RequestsEnded,
    SubmitRefused,
    TellBegun,
)
from exod.core.engine.relay import Relay
from exod.core.engine_core import EngineCore
from exod.model import MAX_COUNTER, NodeId
from exod.peers.peer_messages import FrameError, encode, take
from exoengine.protocol import GenerationRequest, SyncSettings
from tests.core.engine.engine_samples import A, B, C, a_plan, begin, only, status, submit, token


def origin_without_a_rank() -> EngineCore:
    """C, whose client asked for "r"; A coordinates, and is rank 0 before B."""
    core = EngineCore(C, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B), "why"), 0.0)
    core.handle(ClientAsked(GenerationRequest("r", 10, prompt="x")), 0.1)
    return core


def says(core: EngineCore, sender: NodeId, message: EngineMessage) -> list[EngineCommand]:
    return core.handle(EngineMessageReceived(sender, message), 1.0)


def test_only_the_coordinators_rank_relays_an_answer() -> None:
    core = origin_without_a_rank()
    output = RelayedOutput((token("r", 0),), 0)
    assert only(says(core, B, output), DeliverToken) == []
    assert only(says(core, B, output), LogIgnored) == [LogIgnored(B, "RelayedOutput")]
    assert len(only(says(core, A, output), DeliverToken)) == 1


def test_what_the_last_plans_relay_had_on_its_way_is_taken() -> None:
    core = origin_without_a_rank()
    core.handle(PlanCommitted(a_plan(B, number=2), "A has no rank any more"), 0.5)
    assert len(only(says(core, A, RelayedOutput((token("r", 0),), 0)), DeliverToken)) == 1
    core.handle(PlanCommitted(a_plan(B, number=3), "again"), 0.6)
    assert only(says(core, A, RelayedOutput((token("r", 1),), 1)), DeliverToken) == []


@pytest.mark.parametrize("message", [SubmitRefused("r", "queue_full", "no", 1.0), Queued("r")])
def test_only_the_coordinator_says_what_becomes_of_a_request(message: EngineMessage) -> None:
    core = origin_without_a_rank()
    commands = says(core, B, message)
    assert only(commands, DeliverError) == []
    assert [ignored.sender for ignored in only(commands, LogIgnored)] == [B]
    assert only(says(core, A, message), LogIgnored) == []


@pytest.mark.parametrize(
    ("message", "rightful"),
    [
        (status(A, seq=7), A),
        (FormOrder(A, "plan1", 1, "prepare"), A),
        (begin(1, origin=A), A),
        (TellBegun(A), A),
        (RequestsEnded(A, 3), A),
        (submit("q", origin=A), A),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, msgspec.Struct) else "",
)
def test_nobody_speaks_in_anothers_name(message: EngineMessage, rightful: NodeId) -> None:
    """B names A, the coordinator, as the one who says it."""
    core = EngineCore(C, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B, C), "why"), 0.0)
    assert says(core, B, message) == [LogIgnored(B, type(message).__name__)]
    assert only(says(core, rightful, message), LogIgnored) == []


@pytest.mark.parametrize("message", [begin(1, origin=A), TellBegun(B), RequestsEnded(B, 3)])
def test_only_the_coordinator_orders(message: EngineMessage) -> None:
    """B says it of itself, and does not coordinate."""
    if isinstance(message, BeginRequest):
        message = msgspec.structs.replace(message, sender=B)
    core = EngineCore(C, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B, C), "why"), 0.0)
    assert says(core, B, message) == [LogIgnored(B, type(message).__name__)]


@pytest.mark.parametrize("message", [begin(1, origin=A), TellBegun(B), RequestsEnded(B, 3)])
def test_not_even_the_coordinator_orders_in_anothers_name(message: EngineMessage) -> None:
    if isinstance(message, BeginRequest):
        message = msgspec.structs.replace(message, sender=B)
    core = EngineCore(C, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B, C), "why"), 0.0)
    assert says(core, A, message) == [LogIgnored(A, type(message).__name__)]


def test_only_a_rank_says_what_it_is_at() -> None:
    core = EngineCore(A, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B), "why"), 0.0)
    assert says(core, C, Begun(begin(9, origin=C))) == [LogIgnored(C, "Begun")]
    assert core.scheduler.origins("r") == set()
    says(core, B, Begun(begin(9, origin=C)))
    assert core.scheduler.origins("r") == {C}


def test_a_request_is_cancelled_by_its_origin_or_the_coordinator_alone() -> None:
    core = EngineCore(A, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B), "why"), 0.0)
    for _ in range(2):  # one is begun, one waits
        says(core, C, submit("r", origin=C))
    assert core.scheduler.waiting == 1
    says(core, B, CancelRequest("r"))
    assert core.scheduler.waiting == 1
    says(core, C, CancelRequest("r"))
    assert core.scheduler.waiting == 0


def test_an_answer_is_sent_again_to_its_origin_alone() -> None:
    relay = Relay()
    relay.note(token("r", 0), 0, C)
    assert relay.after("r", 0, B) == []
    assert len(relay.after("r", 0, C)) == 1
    unknown = Relay()
    unknown.note(token("r", 0), 0, NodeId(""))
    assert len(unknown.after("r", 0, B)) == 1, "a generation that outlived its daemon is claimed"


def test_nobody_is_sent_what_another_member_asked_for() -> None:
    core = EngineCore(A, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(A, B), "why"), 0.0)
    says(core, C, submit("r", origin=C))
    assert only(says(core, B, RelayAgain("r", 0)), LogIgnored) == [LogIgnored(B, "RelayAgain")]
    sent = [one for one in only(says(core, B, RelayAgain("r", 0)), SendTo) if one.node == B]
    assert not [one for one in sent if isinstance(one.message, RelayedOutput)]


def test_the_coordinator_relays_whatever_its_place_in_the_ring() -> None:
    core = EngineCore(C, 1, SyncSettings(), 60.0, 52420)
    core.handle(PlanCommitted(a_plan(B, A), "A coordinates; B is rank 0"), 0.0)
    commands = core.handle(ClientAsked(GenerationRequest("r", 10, prompt="x")), 0.1)
    assert {sent.node for sent in only(commands, SendTo)} == {A}
    output = RelayedOutput((token("r", 0),), 0)
    assert only(says(core, B, output), DeliverToken) == []
    assert len(only(says(core, A, output), DeliverToken)) == 1


@pytest.mark.parametrize(
    "message",
    [
        status(A, seq=MAX_COUNTER + 1),
        status(A, attempt=1 << 63),
        status(A, begun=MAX_COUNTER + 1),
        status(A, finished=MAX_COUNTER + 1),
        status(A, under_way=(1, MAX_COUNTER + 1)),
        status(A, ended=(MAX_COUNTER + 1,)),
        FormOrder(A, "plan1", (1 << 64) - 1, "form"),
        begin(MAX_COUNTER + 1),
        begin(1, ended=MAX_COUNTER + 1),
        Begun(begin(MAX_COUNTER + 1)),
        RequestsEnded(A, MAX_COUNTER + 1),
        RequestsEnded(A, 1, (MAX_COUNTER + 1,)),
        RelayAgain("r", MAX_COUNTER + 1),
        RelayAgain("r", -1),
    ],
    ids=str,
)
def test_a_number_that_no_count_could_go_on_from_is_no_message(message: EngineMessage) -> None:
    """One more than the highest of 8 bytes cannot be written any more: the next order would end the daemon."""
    with pytest.raises(FrameError, match="not a control message"):
        take(bytearray(encode(message)))
