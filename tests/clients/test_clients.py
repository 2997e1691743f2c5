"""Unmodified clients of other projects, in an environment of their own, build/clients: `make clients` builds it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from exod.http.server import HttpApi
from tests.clients.answering import AnsweringDaemon
from tests.conftest import missing

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ENVIRONMENT = ROOT / "build" / "clients"
DEADLINE_S = 240.0
"""The slowest of them is imported in 10 s on a busy machine."""


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    api = HttpApi(AnsweringDaemon(), "127.0.0.1", 0)
    api.start()
    running = asyncio.create_task(api.run(), name="http api")
    try:
        yield f"http://127.0.0.1:{api.port}"
    finally:
        await api.stop(0.0)
        await running


async def run(*command: object) -> str:
    """What it wrote, once it has ended well."""
    keep = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = await asyncio.create_subprocess_exec(
        *map(str, command), env=keep, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, out.decode()[-4000:]
    return out.decode()


def environment() -> Path:
    if not (ENVIRONMENT / "bin" / "schemathesis").exists():
        missing("the clients' environment is not built: make clients")
    return ENVIRONMENT / "bin"


@pytest.mark.parametrize("client", ["openai", "anthropic", "litellm", "langchain", "llm"])
async def test_a_python_client_finds_what_it_knows(client: str) -> None:
    folder = environment()
    async with served() as url:
        assert f"{client}: fine" in await run(folder / "python", HERE / "with_python.py", url, client)


async def test_the_openai_package_of_npm_finds_what_it_knows() -> None:
    if shutil.which("node") is None or not (ROOT / "node_modules" / "openai").is_dir():
        missing("needs node and the package openai: npm install --no-save openai")
    async with served() as url:
        assert "fine" in await run("node", HERE / "with_node.mjs", url)


async def test_no_request_that_the_description_allows_is_a_server_error() -> None:
    folder = environment()
    async with served() as url:
        checks = ("--checks", "not_a_server_error", "--phases", "coverage", "--max-examples", "5")
        quiet = ("--exclude-path", "/api/events", "--request-timeout", "10", "--suppress-health-check", "all")
        await run(folder / "schemathesis", "run", f"{url}/openapi.json", *checks, *quiet)
