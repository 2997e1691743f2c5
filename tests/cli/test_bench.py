"""`exoctl bench`: what is asked for each number of clients, and what is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exod.daemon_api.interface import GenerationEnd, TextDelta, Usage
from exod.daemon_api.shapes import Readiness
from exod.errors import ExitCode, RequestError
from tests.cli.running import Exoctl, served
from tests.sample_reports import MODEL

pytestmark = pytest.mark.anyio


@pytest.fixture
def exoctl(tmp_path: Path) -> Exoctl:
    return Exoctl(tmp_path)


async def test_each_number_of_clients_has_a_row(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        daemon.pace_s = 0.001
        ended = await exoctl.run("bench", "--clients", "1,3", "--tokens", "5", "--json")
        prompts = [(request.messages or ())[0].content for request in daemon.requests]
    told = json.loads(ended.out)
    assert (ended.code, ended.err, told["model"]) == (0, "", MODEL)
    assert [(row["clients"], row["tokens"]) for row in told["rows"]] == [(1, 5), (3, 15)]
    assert all(row["tokens_per_s"] > 0 and row["first_token_ms"] > 0 for row in told["rows"])
    assert len(prompts) == 1 + 1 + 3, "one warms up"
    assert len(set(prompts)) == 5, "nobody finds its prompt in the cache"


async def test_tokens_that_come_in_a_burst_are_not_taken_for_speed(exoctl: Exoctl) -> None:
    """On a busy machine a whole answer may arrive at once; the engine says how long it took to make."""
    async with served(exoctl) as daemon:
        daemon.script = [
            *(TextDelta(token, "1") for token in range(5)),
            GenerationEnd("stop", Usage(3, 5, decode_s=9.0)),
        ]
        ended = await exoctl.run("bench", "--clients", "1", "--tokens", "5", "--json")
    (row,) = json.loads(ended.out)["rows"]
    assert row["tokens_per_s"] <= 4 / (row["first_token_ms"] / 1000)


async def test_a_second_run_asks_something_else(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        for _ in range(2):
            await exoctl.run("bench", "--clients", "2,2", "--tokens", "2", "--json")
        prompts = [(request.messages or ())[0].content for request in daemon.requests]
    assert not set(prompts[:5]) & set(prompts[5:])


async def test_people_see_a_table_and_a_bar(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        daemon.pace_s = 0.001
        async with exoctl.terminal("bench", "--clients", "2", "--tokens", "4") as terminal:
            await terminal.until("of 8 tokens")
            assert await terminal.ended() == 0
    assert "first token" in terminal.shown
    assert MODEL in terminal.shown


async def test_a_drained_cluster_is_not_said_to_have_no_model(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        daemon.models_now = []
        daemon.ready_now = Readiness(False, "draining", "the cluster is drained")
        ended = await exoctl.run("bench", "--json")
    assert ended.code == ExitCode.DEGRADED
    assert json.loads(ended.out)["error"]["code"] == "draining"


async def test_what_cannot_be_measured_is_told(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        assert (await exoctl.run("bench", "--clients", "0")).code == ExitCode.USAGE
        assert (await exoctl.run("bench", "--tokens", "1")).code == ExitCode.USAGE
        daemon.refuse = RequestError("queue_full", "64 requests wait already", ExitCode.DEGRADED)
        refused = await exoctl.run("bench", "--clients", "1")
        daemon.models_now = []
        none = await exoctl.run("bench")
    assert (refused.code, "64 requests" in refused.err) == (ExitCode.DEGRADED, True)
    assert "no model is loaded" in none.err
