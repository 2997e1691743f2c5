"""`exoctl chat`: what goes to which stream, how an answer ends, and a conversation in a real terminal."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from exod.daemon_api.interface import GenerationEnd, TextDelta, Usage
from exod.errors import ExitCode, RequestError
from tests.cli.running import DEADLINE_S, Exoctl, served
from tests.sample_reports import MODEL

pytestmark = pytest.mark.anyio


@pytest.fixture
def exoctl(tmp_path: Path) -> Exoctl:
    return Exoctl(tmp_path)


async def test_chat_streams_the_answer_and_nothing_else_to_standard_output(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        ended = await exoctl.run("chat", "count from 3 to 12", "--system", "You count.", "--max-tokens", "99")
        (request,) = daemon.requests
    assert (ended.code, ended.out, ended.err) == (0, "3 4 5 6 7 8 9 10 11 12\n", "")
    assert request.sampling.temperature == 0
    assert request.max_tokens == 99
    assert request.messages is not None
    assert [message.role for message in request.messages] == ["system", "user"]


async def test_a_prompt_needs_no_quotes(exoctl: Exoctl) -> None:
    async with served(exoctl):
        ended = await exoctl.run("chat", "count", "from", "3", "to", "5")
    assert (ended.code, ended.out, ended.err) == (0, "3 4 5\n", "")


async def test_chat_takes_its_prompt_from_a_pipe(exoctl: Exoctl) -> None:
    async with served(exoctl):
        ended = await exoctl.run("chat", stdin="count from 1 to 3\n")
        empty = await exoctl.run("chat", stdin="")
    assert ended.out == "1 2 3\n"
    assert empty.code == ExitCode.USAGE


async def test_chat_json_is_one_object_with_usage(exoctl: Exoctl) -> None:
    async with served(exoctl):
        answer = json.loads((await exoctl.run("chat", "count from 1 to 3", "--json")).out)
    assert (answer["text"], answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("1 2 3", "stop", 3)


async def test_an_answer_that_breaks_off_is_an_error(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        daemon.fail_at = 2
        ended = await exoctl.run("chat", "count from 1 to 9")
        daemon.refuse = RequestError("queue_full", "32 requests wait already", ExitCode.DEGRADED)
        refused = await exoctl.run("chat", "count from 1 to 9")
        other = await exoctl.run("chat", "hi", "--model", "llama")
    assert ended.code == ExitCode.DEGRADED
    assert ended.out.startswith("1 2")
    assert "studio2 did not return" in ended.err
    assert (refused.code, refused.err) == (ExitCode.DEGRADED, "exoctl: 32 requests wait already\n")
    assert other.code == ExitCode.USAGE
    assert MODEL in other.err


async def test_an_interrupted_chat_cancels_its_generation(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        daemon.pause = asyncio.Event()
        process = await exoctl.start("chat", "count from 1 to 9")
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            assert await process.stdout.readexactly(3) == b"1 2"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            while not daemon.cancelled:  # noqa: ASYNC110 - a fake's plain field
                await asyncio.sleep(0.005)


async def test_a_conversation_remembers_what_was_said(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        async with exoctl.terminal("chat", "--no-color") as terminal:
            await terminal.until("> ")
            terminal.type("count from 1 to 3\n")
            await terminal.until("1 2 3")
            await terminal.until("3 tokens")
            terminal.type("count from 5 to 6\n")
            await terminal.until("5 6")
            await terminal.until("2 tokens")
            terminal.type("/clear\ncount from 8 to 9\n")
            await terminal.until("(forgotten)")
            await terminal.until("8 9")
            await terminal.until("2 tokens", times=2)
            await terminal.until("> ", times=5)
            terminal.type("\x04")
            assert await terminal.ended() == 0
        first, second, third = (request.messages or () for request in daemon.requests)
    assert [message.content for message in second] == ["count from 1 to 3", "1 2 3", "count from 5 to 6"]
    assert len(first) == len(third) == 1


async def test_what_a_model_thinks_is_dimmed_and_no_part_of_the_answer(exoctl: Exoctl) -> None:
    thinking = [
        TextDelta(0, "", reasoning="Hm, "),
        TextDelta(1, "", reasoning="so."),
        TextDelta(2, "Yes."),
        GenerationEnd("stop", Usage(5, 3)),
    ]
    async with served(exoctl) as daemon:
        daemon.script = thinking
        piped = await exoctl.run("chat", "well?")
        async with exoctl.terminal("chat") as terminal:
            await terminal.until("> ")
            terminal.type("well?\n")
            await terminal.until("Yes.")
            await terminal.until("3 tokens")
            terminal.type("/reset\n/quit\n")
            assert await terminal.ended() == 0
    assert (piped.out, piped.err) == ("Yes.\n", "")
    assert "\x1b[2mHm, " in terminal.shown


async def test_in_a_conversation_ctrl_c_ends_an_answer_and_an_error_ends_nothing(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        daemon.pause = asyncio.Event()
        async with exoctl.terminal("chat") as terminal:
            await terminal.until("> ")
            terminal.type("count from 1 to 9\n")
            await terminal.until("1 2")
            terminal.type("\x03")
            await terminal.until("(ended)")
            daemon.pause = None
            daemon.refuse = RequestError("queue_full", "32 requests wait already")
            terminal.type("count from 1 to 2\n")
            await terminal.until("32 requests wait already")
            daemon.refuse = None
            terminal.type("count from 1 to 4\n")
            await terminal.until("1 2 3 4")
            terminal.type("/quit\n")
            assert await terminal.ended() == 0
        last = daemon.requests[-1].messages
    assert last is not None
    assert len(last) == 1, "neither the ended nor the refused question is remembered"
