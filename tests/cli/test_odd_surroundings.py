"""`exoctl` where its surroundings are odd: closed or full streams, bytes that are no text, a home that is none."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from exod.errors import ExitCode
from tests.cli.running import DEADLINE_S, EXOCTL, Ended, Exoctl, served

pytestmark = pytest.mark.anyio

NOT_UTF8 = os.fsdecode(b"\xff\xfe")
FULL = "/dev/full"
needs_full_device = pytest.mark.skipif(not Path(FULL).exists(), reason=f"{FULL} is Linux's")


@pytest.fixture
def exoctl(tmp_path: Path) -> Exoctl:
    return Exoctl(tmp_path)


async def redirected(exoctl: Exoctl, redirections: str, *arguments: str) -> Ended:
    """Started by a shell that redirects some of its streams."""
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", f'"$@" {redirections}', "sh", *EXOCTL, "--socket", str(exoctl.socket), *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=exoctl.environment,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


def error_of(ended: Ended) -> dict[str, Any]:
    """What --json printed of an error that is one line on standard error."""
    assert ended.err.startswith("exoctl: ")
    assert ended.err.count("\n") == 1
    answer = json.loads(ended.out)
    assert answer["schema"] == 1
    error = answer["error"]
    assert isinstance(error, dict)
    assert error["exit_code"] == ended.code
    return error


@pytest.mark.parametrize("redirections", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
async def test_closed_streams_take_nothing_and_break_nothing(exoctl: Exoctl, redirections: str) -> None:
    async with served(exoctl):
        ended = await redirected(exoctl, redirections, "status")
    assert (ended.code, ended.err) == (0, "")


async def test_chat_with_a_closed_standard_input_has_no_prompt(exoctl: Exoctl) -> None:
    async with served(exoctl):
        ended = await redirected(exoctl, "<&-", "--json", "chat")
    assert ended.code == ExitCode.USAGE
    assert "there is no prompt" in error_of(ended)["text"]


@needs_full_device
@pytest.mark.parametrize("arguments", [("status",), ("status", "--json"), ("config", "show")])
async def test_a_full_output_is_one_line(exoctl: Exoctl, arguments: tuple[str, ...]) -> None:
    async with served(exoctl):
        ended = await redirected(exoctl, f">{FULL}", *arguments)
    assert ended.code == ExitCode.INTERNAL
    assert ended.err == "exoctl: standard output: No space left on device\n"


@pytest.mark.parametrize(
    "arguments",
    [("links", NOT_UTF8), ("chat", NOT_UTF8), ("engine", "load", NOT_UTF8), ("events", "--node", NOT_UTF8)],
)
async def test_an_argument_that_is_no_text_is_a_wrong_one(exoctl: Exoctl, arguments: tuple[str, ...]) -> None:
    async with served(exoctl):
        ended = await exoctl.run("--json", *arguments)
    assert ended.code == ExitCode.USAGE
    assert "UTF-8" in error_of(ended)["text"]


async def test_a_prompt_that_is_no_text_is_a_wrong_one(exoctl: Exoctl) -> None:
    async with served(exoctl):
        ended = await redirected(exoctl, "<prompt".replace("prompt", str(write(exoctl))), "--json", "chat")
    assert ended.code == ExitCode.USAGE
    assert "UTF-8" in error_of(ended)["text"]


def write(exoctl: Exoctl) -> Path:
    file = exoctl.folder / "prompt.txt"
    file.write_bytes(b"count from \xff")
    return file


async def test_a_variable_that_is_no_text_is_an_error_in_json(exoctl: Exoctl) -> None:
    exoctl.environment["EXOD_NODE__NAME"] = NOT_UTF8
    ended = await exoctl.run("--json", "config", "check")
    assert ended.code == ExitCode.USAGE
    assert "EXOD_NODE__NAME" in error_of(ended)["text"]


async def test_a_folder_whose_name_is_no_text_is_still_shown(exoctl: Exoctl) -> None:
    exoctl.environment["XDG_CONFIG_HOME"] = f"{exoctl.folder}/{NOT_UTF8}"
    ended = await exoctl.run("--json", "config", "path")
    assert ended.code == 0
    assert json.loads(ended.out)["path"].endswith("/exod.toml")


async def test_a_home_that_is_no_folder_has_no_configuration(exoctl: Exoctl) -> None:
    exoctl.environment["XDG_CONFIG_HOME"] = "/dev/null"
    ended = await exoctl.run("config", "check")
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ping", "studio2", "-c", "0"), "-c/--count: 0: expected a whole number from 1 to 100000"),
        (("ping", "studio2", "-c", "x"), "-c/--count: x: expected a whole number from 1 to 100000"),
        (("chat", "--max-tokens", "0", "hi"), "--max-tokens: 0: expected a whole number from 1"),
        (("chat", "--temperature", "nan", "hi"), "--temperature: nan: expected a number from 0 to 2"),
        (("chat", "--seed=-1", "hi"), "--seed: -1: expected a whole number from 0"),
        (("cluster", "invite", "--for="), "'' is no length of time"),
        (("cluster", "invite", "--for", "8d"), "--for: 8d: expected 1s to 7d"),
        (("engine", "load", ""), "MODEL: expected a name, and this is empty"),
        (("model", "pull", ""), "MODEL: expected a name, and this is empty"),
        (("events", "--node="), "--node: expected a name, and this is empty"),
        (("status", "--config="), "--config: expected a path, and this is empty"),
        (("report", "--output="), "--output: expected a path, and this is empty"),
        (("config", "check", ""), "FILE: expected a path, and this is empty"),
        (("config", "check", "~nobody-of-this-name/x"), "there is no such user"),
        (("wait", "--timeout", "soon"), "--timeout: soon: expected seconds, 0 or more"),
    ],
)
async def test_a_value_out_of_range_names_the_option_and_what_is_allowed(
    exoctl: Exoctl, arguments: tuple[str, ...], said: str
) -> None:
    async with served(exoctl):
        ended = await exoctl.run("--json", *arguments)
    assert ended.code == ExitCode.USAGE
    assert said in error_of(ended)["text"]


async def test_a_name_that_the_terminal_cannot_show_is_shown_with_question_marks(exoctl: Exoctl) -> None:
    exoctl.environment["PYTHONIOENCODING"] = "ascii"
    exoctl.environment["EXOD_CLUSTER__KEY_FILE"] = f"{exoctl.folder}/größe"
    ended = await exoctl.run("config", "show")
    assert ended.code == 0
    assert "/gr?" in ended.out


async def test_a_bug_in_a_command_is_one_line_and_an_object(exoctl: Exoctl) -> None:
    """A broken package stands in for what nobody thought of."""
    broken = exoctl.folder / "broken"
    broken.mkdir()
    (broken / "platformdirs.py").write_text("def user_config_path(*a, **b): raise KeyError('surprise')")
    exoctl.environment["PYTHONPATH"] = f"{broken}"
    ended = await exoctl.run("--json", "config", "path")
    assert ended.code == ExitCode.INTERNAL
    error = error_of(ended)
    assert error["code"] == "internal"
    assert "KeyError" in error["text"]
    assert "exoctl report" in error["text"]
