"""Runs this rank's part of a proof of RDMA: `python -m exoengine.ring.rdma_proof`, with a deadline.

A group over RDMA can hang for ever and hear no signal but SIGKILL: so the proof is a child, and past its deadline
it is killed. Decides that deadline. Raises nothing: what went wrong comes back as text.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from exoengine.native.build import cache_in
from exoengine.protocol import RdmaSetup

DEADLINE_S: Final = 30.0
"""Importing MLX takes a second or two on a busy machine, and ranks that begin apart wait for each other; the proof
itself takes less than a second."""

COMMAND: Final = (sys.executable, "-P", "-m", "exoengine.ring.rdma_proof")


async def prove(rank: int, setup: RdmaSetup, folder: Path, environment: dict[str, str]) -> str:
    """What is wrong, in words; empty where RDMA works between all ranks."""
    try:
        child = await asyncio.create_subprocess_exec(
            *COMMAND, "--rank", str(rank), "--native", str(cache_in(folder)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )  # fmt: skip
    except OSError as error:
        return f"its process could not be started: {error.strerror}"
    try:
        async with asyncio.timeout(DEADLINE_S):
            _, said = await child.communicate(msgspec.json.encode(setup))
    except TimeoutError:
        return f"it did not end within {DEADLINE_S:.0f} s: some rank did not come, or RDMA hangs"
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    words = said.decode("utf-8", "replace").strip().splitlines()
    return "" if child.returncode == 0 else words[-1] if words else f"its process ended with {child.returncode}"
