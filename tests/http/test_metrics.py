"""What /metrics says of serving: names and labels as Prometheus has them, and nothing that a client can choose."""

from __future__ import annotations

import re

import pytest

from exod.http.metrics import HttpMetrics
from tests.http.served import CHAT, count, served


async def scraped() -> str:
    async with served() as place:
        return (await place.http.ask("GET", "/metrics")).body.decode()


def value(text: str, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"{sample} is not in\n{text}"
    return float(found[1])


@pytest.mark.anyio
async def test_a_rank_tells_its_passes_its_batches_and_its_bubble() -> None:
    async with served() as place:
        status = place.daemon.status_now
        text = (await place.http.ask("GET", "/metrics")).body.decode()
    rank = status.mesh.ring.index(status.node.id)
    at = f'{{rank="{rank}"}}'
    assert value(text, f'exod_rank_passes_total{{kind="decode",rank="{rank}"}}') == 100
    assert value(text, f'exod_rank_passes_total{{kind="prefill",rank="{rank}"}}') == 7
    assert value(text, f"exod_rank_batch_sequences_sum{at}") == 250
    assert value(text, f"exod_rank_batch_sequences_count{at}") == 100
    assert value(text, f"exod_rank_stage_seconds_total{at}") == 6
    assert value(text, f"exod_rank_bubble_ratio{at}") == 0.25
    assert value(text, f"exod_rank_kv_cache_bytes{at}") == 4096
    assert value(text, f"exod_rank_prompt_cache_bytes{at}") == 8192


@pytest.mark.anyio
async def test_the_queue_and_recoveries_are_counted() -> None:
    text = await scraped()
    assert value(text, 'exod_engine_queue_wait_seconds_bucket{le="0.1"}') == 3
    assert value(text, 'exod_engine_queue_wait_seconds_bucket{le="+Inf"}') == 4
    assert value(text, "exod_engine_queue_wait_seconds_sum") == 0.7
    assert value(text, "exod_engine_preemptions_total") == 3
    assert value(text, 'exod_engine_recoveries_by_cause_total{cause="fault"}') == 2
    assert value(text, 'exod_engine_recovery_gap_seconds_total{cause="move"}') == 0.2


@pytest.mark.anyio
async def test_refusals_are_counted_by_codes_that_are_known() -> None:
    async with served() as place:
        metrics = HttpMetrics(place.daemon.metrics)
        for code in ("queue_full", "queue_full", "a code that a peer made up", "bad_token"):
            metrics.refused(code)
        text = metrics.text().decode()
    assert value(text, 'exod_generation_refusals_total{code="queue_full"}') == 2
    assert value(text, 'exod_generation_refusals_total{code="bad_token"}') == 1
    assert value(text, 'exod_generation_refusals_total{code="other"}') == 1
    assert "made up" not in text


@pytest.mark.anyio
async def test_what_a_body_is_refused_for_shows_by_its_code() -> None:
    bodies = {
        "invalid_value": count(1, 5, max_tokens="many"),
        "invalid_json": b"{",
        "unknown_field": count(1, 5, temprature=1),
        "unsupported_value": count(1, 5, modalities=["audio"]),
        "previous_response_not_found": {"input": "hi", "previous_response_id": "resp-1"},
        "item_not_found": {"input": [{"type": "item_reference", "id": "msg_1"}]},
    }
    async with served() as place:
        for code, body in bodies.items():
            path = "/v1/responses" if "not_found" in code else CHAT
            refused = await place.http.ask("POST", path, body)
            assert (refused.status, refused.code) == (400, code)
        text = (await place.http.ask("GET", "/metrics")).body.decode()
    for code in bodies:
        assert value(text, f'exod_generation_refusals_total{{code="{code}"}}') == 1


@pytest.mark.anyio
async def test_a_request_that_is_refused_shows() -> None:
    async with served() as place:
        refused = await place.http.ask("POST", CHAT, count(1, 5, max_tokens="many"))
        assert refused.status == 400
        text = (await place.http.ask("GET", "/metrics")).body.decode()
    assert re.search(r'^exod_generation_refusals_total\{code="[a-z_]+"\} 1\.0$', text, re.MULTILINE), text
