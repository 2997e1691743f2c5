"""A status is read from its parts, of which none is the daemon, and reading it leaves no trace."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exod.core.engine.engine_messages import RankPhase, RankStatus
from exod.core.status.alerts import LASTING_S
from exod.core.status.health import HealthSnapshot
from exod.daemon_api.counters import DaemonCounters
from exod.daemon_api.interface import GenerationDelta
from exod.daemon_api.shapes import PreflightReport
from exod.errors import RequestError
from exod.model import EngineState, Epoch, Health, MeshPlan, NodeId, Reason
from exod.platform.this_host import current
from exod.status.answers import Answers, ClusterSettings, Network, Requests
from exod.status.membership_answers import MembershipAnswers
from exod.status.mqtt_snapshot import MqttSnapshot
from exod.status.snapshot import StatusBuilder
from exoengine.protocol import GenerationRequest
from tests.status.status_parts import ME, PATH, PEER, NoEvents, StillCore, StillEngine, seen, status_of

PLAN = MeshPlan(Epoch(1, 1), ME.id, (), (ME.id,), (), "embedded:count", "auto", (), "plan1")
FORMED = RankStatus(ME.id, 1, 1, RankPhase.FORMED, "plan1", layers=(0, 4), pid=7)

IN_THE_STATUS = {
    "id": "1-2-bridge0",
    "interface": "bridge0",
    "kind": "thunderbolt",
    "local": "10.0.0.1",
    "remote": "10.0.0.2",
    "state": "up",
    "rtt_ms": 0.412,
    "rtt_p90_ms": 0.612,
    "loss": 0.0123,
    "selected": True,
    "why": "bridge0 is best",
}
IN_THE_LINKS = {
    **IN_THE_STATUS,
    "rtt_ms": 0.41234567,
    "rtt_p90_ms": 0.61234567,
    "loss": 0.0123456,
    "eligible": False,
    "score_ms": 0.51234567,
    "in_band": True,
    "peer_state": "degraded",
    "samples": 10,
    "last_heard_s": 0.0123456,
    "fault": "a debug fault adds 5 ms for another 3 s",
}
"""Nothing is rounded: a reader of links wants the figures that the decision was made from."""


class Unasked:
    """A membership of which no snapshot asks more than the key's name."""

    fingerprint = "ab:cd"


def told(value: object) -> object:
    return json.loads(msgspec.json.encode(value))


def answers_of(status: StatusBuilder, core: StillCore, engine: StillEngine) -> Answers:
    async def preflight() -> PreflightReport:
        raise AssertionError("a snapshot ran the preflight")

    async def asked(what: object) -> Any:
        raise AssertionError(f"a snapshot asked for {what}")

    def fed(event: object) -> None:
        raise AssertionError(f"a snapshot fed {event}")

    def generate(request: GenerationRequest) -> object:
        raise AssertionError("a request reached the engine")

    return Answers(
        ClusterSettings("home", Path("key"), True),
        status,
        core,  # type: ignore[arg-type]
        engine,
        NoEvents(),
        DaemonCounters,
        Network(current(), tuple, None, tuple),
        Requests(
            feed=fed,
            feed_engine=fed,
            drain=engine.drain,
            check_load=asked,
            preflight=preflight,
            generate=generate,  # type: ignore[arg-type]
            text=asked,
            models=Unasked(),  # type: ignore[arg-type]
        ),
        MembershipAnswers(Unasked(), status, lambda: ((), 0)),  # type: ignore[arg-type]
    )


def test_a_path_in_the_status_is_rounded_for_people_and_one_in_the_links_is_not() -> None:
    core, engine = StillCore(seen()), StillEngine()
    status = status_of(core, engine)
    (link,) = status.status().links
    assert [told(path) for path in link.paths] == [IN_THE_STATUS]
    (detail,) = answers_of(status, core, engine).links(None).links
    assert [told(path) for path in detail.paths] == [IN_THE_LINKS]


def test_what_was_not_measured_is_null_in_both() -> None:
    silent = msgspec.structs.replace(PATH, rtt_ms=None, rtt_p90_ms=None, score_ms=None, last_heard_s=None, fault="")
    core, engine = StillCore(seen(silent)), StillEngine()
    status = status_of(core, engine)
    (link,) = status.status().links
    nothing = {"rtt_ms": None, "rtt_p90_ms": None}
    assert [told(path) for path in link.paths] == [IN_THE_STATUS | nothing]
    (detail,) = answers_of(status, core, engine).links(PEER.id).links
    unheard = {"score_ms": None, "last_heard_s": None, "fault": ""}
    assert [told(path) for path in detail.paths] == [IN_THE_LINKS | nothing | unheard]


def test_reading_every_snapshot_a_hundred_times_starts_no_grace() -> None:
    core, engine = StillCore(seen(agreed=False)), StillEngine()
    status = status_of(core, engine)
    answers = answers_of(status, core, engine)
    for _ in range(100):
        answers.status(), answers.links(None), answers.mesh(), answers.engine(), answers.cluster()
        answers.ready(), answers.models(), answers.metrics(), answers.links_history(None, 10)
    assert status.observe(core.seen).lasting_s == ()
    assert status.status().health is Health.HEALTHY


def test_a_clock_that_is_set_changes_nothing_in_how_long_a_node_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    status = status_of(StillCore(seen()))
    before = status.status().node.uptime_s
    wall = time.time()
    for moved_s in (-86_400.0, 86_400.0):
        monkeypatch.setattr(time, "time", lambda moved_s=moved_s: wall + moved_s)
        assert 0 <= status.status().node.uptime_s - before < 3_600
        assert 0 <= status.node_report().uptime_s - before < 3_600


def test_a_first_load_is_no_recovery_however_often_the_status_is_read() -> None:
    """What was served is recorded where changes are passed on, and by no reader."""
    engine = StillEngine(plan=PLAN, statuses={ME.id: FORMED})
    status = status_of(StillCore(seen()), engine)
    assert status.engine().state is EngineState.READY
    engine.statuses = {ME.id: msgspec.structs.replace(FORMED, phase=RankPhase.LOADING)}
    assert status.engine().state is EngineState.LOADING
    status.record.served_model = PLAN.model
    assert status.engine().state is EngineState.RECOVERING


def test_a_link_that_stands_is_told_over_mqtt_by_the_same_words() -> None:
    """Selected at a time of the monotonic clock: on the wall clock it moved by microseconds with each look."""
    core = StillCore(seen())
    snapshot, health = MqttSnapshot(ME.id, status_of(core)), HealthSnapshot(Health.HEALTHY, ())
    told = {link.since for _ in range(1000) for link in snapshot.view(core.seen, health).links}
    assert len(told) == 1
    (link,) = core.seen.links
    moved = msgspec.structs.replace(core.seen, links=(msgspec.structs.replace(link, agreed_since=5.0),))
    assert {link.since for link in snapshot.view(moved, health).links} != told


def test_a_reason_that_comes_and_goes_is_no_alert_over_mqtt() -> None:
    """An engine that moves to another path recovers within 50 ms: a house would be woken by each move."""
    core, reason = StillCore(seen()), Reason("engine_recovering", ME.id, "the rank is prepared", 10.0)
    snapshot = MqttSnapshot(ME.id, status_of(core))

    def alerts(lasting_s: float) -> list[str]:
        health = HealthSnapshot(Health.DEGRADED, (reason,), (lasting_s,))
        return [one.code for one in snapshot.view(core.seen, health).alerts]

    assert alerts(0.05) == []
    assert alerts(LASTING_S) == ["engine_recovering"]


@pytest.mark.parametrize(
    ("model", "total_bytes", "downloads"),
    [
        ("embedded:count", 0, False),
        ("/models/mine", 0, False),
        ("/models/mine", 9000, True),
        ("owner/name", 0, True),
        ("owner/name", 9000, True),
    ],
)
def test_a_model_that_is_read_from_this_disk_is_no_download(model: str, total_bytes: int, downloads: bool) -> None:
    """No alert is raised and cleared for each start with the embedded model."""
    looking = msgspec.structs.replace(
        FORMED, phase=RankPhase.RESOLVING, model=model, download_done=1000, download_total=total_bytes
    )
    status = status_of(StillCore(seen()), StillEngine(plan=PLAN, statuses={ME.id: looking}))
    assert [one.model for one in status.downloads()] == [model] * downloads


def test_what_the_coordinator_says_of_rdma_is_in_every_nodes_status() -> None:
    why = "ranks run over TCP, not RDMA: no cable"
    for over_rdma, said, transport in ((False, "", "tcp"), (False, why, "tcp"), (True, "", "rdma")):
        rank = msgspec.structs.replace(FORMED, over_rdma=over_rdma, transport_text=said)
        engine = status_of(StillCore(seen()), StillEngine(plan=PLAN, statuses={ME.id: rank})).engine()
        assert (engine.transport, engine.transport_reason) == (transport, said)


def test_a_rate_is_told_while_answers_are_computed_and_is_the_same_on_every_node() -> None:
    """Idle, the last rate would stand for hours; and each rank measures a slightly different one."""
    plan = msgspec.structs.replace(PLAN, ring=(PEER.id, ME.id))
    own = msgspec.structs.replace(FORMED, tokens_per_s=31.0, baseline_tokens_per_s=33.0, generating=True)
    first = msgspec.structs.replace(own, sender=PEER.id, tokens_per_s=30.0, baseline_tokens_per_s=32.0)
    for busy in (True, False):
        ranks = [msgspec.structs.replace(one, generating=busy) for one in (own, first)]
        still = StillEngine(plan=plan, statuses={one.sender: one for one in ranks})
        status = status_of(StillCore(seen()), still)
        summary = status.engine()
        assert (summary.tokens_per_s, summary.baseline_tokens_per_s) == (30.0 if busy else None, 32.0)


def test_what_cannot_be_served_is_refused_before_the_engine_is_asked() -> None:
    core, engine = StillCore(seen()), StillEngine(plan=msgspec.structs.replace(PLAN, model=""))
    answers = answers_of(status_of(core, engine), core, engine)
    with pytest.raises(RequestError, match="exoctl engine load"):
        answers.generate(GenerationRequest("r1", 1, prompt="1 2"))


@pytest.mark.anyio
async def test_an_error_on_the_way_names_nodes_and_shows_no_ids() -> None:
    core, engine = StillCore(seen()), StillEngine(plan=PLAN, statuses={ME.id: FORMED})
    answers = answers_of(status_of(core, engine), core, engine)

    async def fails() -> AsyncGenerator[GenerationDelta, None]:
        if core.seen.nodes:
            raise RequestError("recovery_failed", f"the rank of {PEER.id} is loading", retry_after_s=1.0)
        yield GenerationDelta()

    with pytest.raises(RequestError) as caught:
        async for _ in answers._named(fails()):
            pass
    assert caught.value.text == f"the rank of {PEER.name} is loading"
    assert (caught.value.code, caught.value.retry_after_s) == ("recovery_failed", 1.0)


def test_links_of_a_peer_that_nobody_knows_are_none() -> None:
    core, engine = StillCore(seen()), StillEngine()
    assert answers_of(status_of(core, engine), core, engine).links(NodeId("0" * 15 + "9")).links == ()


def test_a_drain_returns_once_the_engine_says_that_nothing_runs() -> None:
    core, engine = StillCore(seen()), StillEngine()
    asyncio.run(answers_of(status_of(core, engine), core, engine).engine_drain())
    assert engine.scheduler.draining


def test_a_denied_local_network_is_a_reason_in_the_status_and_in_ready() -> None:
    core, engine = StillCore(seen()), StillEngine()
    status = status_of(core, engine)
    status.local_network = lambda: "macOS refuses every send"
    answers = answers_of(status, core, engine)
    (reason,) = answers.status().reasons
    assert (reason.code, reason.subject, reason.text) == ("local_network_denied", ME.id, "macOS refuses every send")
    assert answers.status().health is Health.DEGRADED
    ready = answers.ready()
    assert not ready.ready
    assert (ready.code, ready.text) == ("local_network_denied", "macOS refuses every send")


@pytest.mark.anyio
async def test_doctor_gives_a_denied_local_network_its_cures_once() -> None:
    core, engine = StillCore(seen()), StillEngine()
    status = status_of(core, engine)
    status.local_network = lambda: "macOS refuses every send"
    found = (await answers_of(status, core, engine).doctor()).findings
    (finding,) = [one for one in found if "local_network" in one.code]
    assert finding.severity == "error"
    assert finding.cure.startswith("in this order: (1) allow it: System Settings")
