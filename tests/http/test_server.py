"""The HTTP API beside generations: what else it tells, how it begins, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket

import pytest

from exod.errors import StartError
from exod.http.server import HttpApi
from exod.model import Event
from tests.fake_daemon import FakeDaemon
from tests.http.raw_http import DEADLINE_S, RawHttp
from tests.http.served import CHAT, count, served
from tests.sample_reports import MODEL, STARTED_AT

pytestmark = pytest.mark.anyio


async def test_models_health_ready_and_status() -> None:
    async with served() as place:
        models = (await place.http.ask("GET", "/v1/models")).json
        assert [model["id"] for model in models["data"]] == [MODEL]
        assert (await place.http.ask("GET", f"/v1/models/{MODEL}")).json["id"] == MODEL
        assert (await place.http.ask("GET", "/health")).json == {"status": "ok"}
        assert (await place.http.ask("GET", "/ready")).json == {"ready": True}
        status = (await place.http.ask("GET", "/api/status")).json
    assert status["schema"] == 1
    assert status["links"][0]["paths"][0]["interface"] == "bridge0"


async def test_metrics_are_prometheus_text_with_the_snapshots_figures() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async with served() as place:
        await place.http.ask("POST", CHAT, count(1, 5))
        await place.http.ask("GET", "/no/such/place")
        answer = await place.http.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    values = {name: value for (name, _), value in samples.items()}
    assert values["exod_datagrams_sent_total"] == 1234
    assert values["exod_mesh_epoch"] == 7
    assert values["exod_http_first_token_seconds_count"] == 1
    assert values["exod_http_token_gap_seconds_count"] == 4
    assert samples["exod_health", (("state", "healthy"),)] == 1
    assert samples["exod_http_requests_total", (("code", "404"), ("method", "GET"), ("route", "other"))] == 1
    floors = [value for (name, labels), value in samples.items() if name == "exod_path_rtt_floor_seconds"]
    assert min(floors) == pytest.approx(0.000251)


async def test_events_follow_from_a_given_time() -> None:
    async with served() as place:
        for path, headers in (
            (f"/api/events?since={STARTED_AT}", {}),
            ("/api/events", {"last-event-id": repr(STARTED_AT)}),
        ):
            stream = await place.http.open("GET", path, headers=headers)
            first = await stream.event()
            assert first is not None
            number, data = first.split("\n")
            assert number == f"id: {STARTED_AT + 1!r}"
            assert json.loads(data.removeprefix("data: "))["to"] == "bridge0"
            stream.close()
        await place.quiet()
        stream = await place.http.open("GET", "/api/events?since=1e11")
        await place.daemon.add_event(Event(2e11, "node.down", "studio2", {}))
        assert "node.down" in (await stream.event() or "")
        stream.close()
        for since in ("yesterday", "nan", "-inf"):
            wrong = await place.http.ask("GET", f"/api/events?since={since}")
            assert (wrong.status, wrong.json["error"]["param"]) == (400, "since")


async def test_a_port_in_use_is_one_clear_line() -> None:
    async with served() as place:
        with pytest.raises(StartError) as caught:
            HttpApi(FakeDaemon(), "127.0.0.1", place.api.port).start()
    text = str(caught.value)
    assert text.startswith(f"127.0.0.1:{place.api.port}: the HTTP API's port is in use")
    assert "\n" not in text


async def test_an_address_of_no_interface_says_so() -> None:
    with pytest.raises(StartError, match=r"no interface of this host has the address"):
        HttpApi(FakeDaemon(), "192.0.2.1", 0).start()


async def test_it_leaves_the_daemons_signal_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with served() as place:
        await place.http.ask("GET", "/health")
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


async def test_stopping_lets_a_generation_end_and_followers_go() -> None:
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        follower = await place.http.open("GET", "/api/events?since=1e11")
        stream = await place.http.open("POST", CHAT, count(1, 5, stream=True))
        await stream.event()
        stopping = asyncio.create_task(place.api.stop(DEADLINE_S), name="stop")
        assert "shutting_down" in (await follower.events())[-1]
        refused = await place.http.ask("POST", CHAT, count(1, 5))
        assert (refused.status, refused.code) == (503, "shutting_down")
        place.daemon.pause.set()
        assert (await stream.events())[-1] == "data: [DONE]"
        await stopping
        async with asyncio.timeout(DEADLINE_S):
            await place.running
        with pytest.raises(ConnectionRefusedError):
            await place.http.ask("GET", "/health")


async def test_past_the_grace_a_stream_is_told_why_it_ends() -> None:
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        stream = await place.http.open("POST", CHAT, count(1, 5, stream=True))
        await stream.event()
        await place.api.stop(0.05)
        events = await stream.events()
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert len(place.daemon.cancelled) == 1


async def test_cancelling_the_server_ends_it_and_frees_the_port() -> None:
    daemon = FakeDaemon()
    api = HttpApi(daemon, "127.0.0.1", 0)
    api.start()
    running = asyncio.create_task(api.run(), name="http api")
    await RawHttp(api.port).ask("GET", "/health")
    running.cancel()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.wait({running})
    assert running.cancelled()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", api.port)) != 0


async def test_the_url_is_one_that_a_client_on_this_host_can_use() -> None:
    for host, expected in (("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")):
        api = HttpApi(FakeDaemon(), host, 0)
        api.start()
        assert api.url == f"http://{expected}:{api.port}"
        api.close()
