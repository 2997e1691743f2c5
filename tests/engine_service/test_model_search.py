"""A model from a hub: fetched without a terminal and with one, ended at once, gone on with, and refused by name."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from exod.engine_service import download_files, model_search
from exod.engine_service.model_search import search
from exoengine.embedded import model_folder
from exoengine.model_files.model_folder import ModelFolderError, inspect
from tests.engine_service.stand_in_hub import COMMIT, MODEL, StandInHub, model_files, serving

pytestmark = pytest.mark.anyio

EXTRA = "model-extra.safetensors"
EMBEDDED = Path(model_folder("embedded:count"))
PATIENCE_S = 60.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home" / "hub"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    with serving(StandInHub(model_files(EMBEDDED, weights_bytes=1_000_000))) as one:
        monkeypatch.setenv("HF_ENDPOINT", one.url)
        yield one


def parts(cache: Path, etag: str = "*") -> list[Path]:
    return list(cache.glob(f"*/blobs/{etag}.exod-part"))


def finished(cache: Path, etag: str) -> list[Path]:
    return list(cache.glob(f"*/blobs/{etag}"))


async def until(condition: object, text: str) -> None:
    assert callable(condition)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - what is waited for lies in other processes
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"never: {text}")


def downloads() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if model_search.COMMAND[-1] in one.cmdline()]


async def refused(progress: object = None) -> ModelFolderError:
    with pytest.raises(ModelFolderError) as caught:
        await search(MODEL, lambda done, total: None)
    assert "\n" not in str(caught.value)
    assert not downloads()
    return caught.value


async def test_a_model_comes_with_its_progress_in_bytes_and_needs_the_hub_only_once(hub: StandInHub) -> None:
    told: list[tuple[int, int]] = []
    folder, summary = await search(MODEL, lambda done, total: told.append((done, total)))
    assert folder.name == COMMIT
    assert summary.fingerprint == inspect(folder).fingerprint
    total = sum(len(content) for name, content in hub.files.items() if not name.endswith((".md", ".py")))
    assert told[-1] == (total, total)
    assert not parts(folder.parents[2])
    hub.asked.clear()
    again, _ = await search(MODEL, lambda done, total: None)
    assert (again, hub.asked) == (folder, [])


@pytest.mark.parametrize("terminal", [False, True], ids=["no terminal", "a terminal"])
def test_a_service_without_a_terminal_gets_it_as_a_person_with_one_does(hub: StandInHub, terminal: bool) -> None:
    """launchd, systemd and nohup give a daemon no terminal; `exod run` by hand has one."""
    code = (
        "import asyncio, sys\n"
        "from exod.engine_service.model_search import search\n"
        "folder, _ = asyncio.run(search(sys.argv[1], lambda done, total: None))\n"
        "open(sys.argv[2], 'w').write(str(folder))\n"
    )
    result = Path(os.environ["HF_HOME"]).parent / "found"
    ours, theirs = pty.openpty() if terminal else (-1, subprocess.DEVNULL)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, MODEL, str(result)],
            stdin=theirs, stdout=theirs, stderr=theirs, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    finally:
        if terminal:
            os.close(theirs)
            os.close(ours)
    assert done.returncode == 0
    assert result.read_text().endswith(COMMIT)


async def test_a_download_that_nobody_wants_any_more_ends_at_once_and_the_next_goes_on(
    hub: StandInHub, cache: Path
) -> None:
    hub.silent_after = 600_000
    job = asyncio.create_task(search(MODEL, lambda done, total: None))
    etag = hub.etag(EXTRA)
    await until(lambda: any(part.stat().st_size > 300_000 for part in parts(cache, etag)), "half of it came")
    (process,) = downloads()
    before = time.monotonic()
    job.cancel()
    await asyncio.wait([job])
    assert time.monotonic() - before < 5.0
    assert not process.is_running()
    (part,) = parts(cache, etag)
    have = part.stat().st_size
    hub.silent_after = None
    hub.asked.clear()
    told: list[tuple[int, int]] = []
    await search(MODEL, lambda done, total: told.append((done, total)))
    assert told[0][0] >= have, "what was there is counted from the start"
    assert ("GET", f"/{MODEL}/resolve/{COMMIT}/{EXTRA} bytes={have}-") in hub.asked


async def test_a_hub_that_is_silent_from_the_start_holds_nobody_up(hub: StandInHub) -> None:
    hub.silent_after = 0
    job = asyncio.create_task(search(MODEL, lambda done, total: None))
    await until(lambda: hub.asked, "it asks")
    job.cancel()
    await asyncio.wait([job], timeout=5.0)
    assert job.cancelled()
    assert not downloads()


async def test_a_hub_that_falls_silent_is_named(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_search, "SILENCE_S", 3.0)
    hub.silent_after = 100_000
    error = await refused()
    assert error.code == "hub_silent"
    assert MODEL in str(error)


async def test_the_download_ends_with_a_daemon_that_was_killed(hub: StandInHub) -> None:
    hub.silent_after = 0
    code = (
        "import asyncio; from exod.engine_service.model_search import search; "
        f"asyncio.run(search({MODEL!r}, print))"
    )
    daemon = subprocess.Popen([sys.executable, "-c", code])  # noqa: ASYNC220 - returns at once
    try:
        await until(lambda: hub.asked, "it asks")
        (child,) = psutil.Process(daemon.pid).children()
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child ends")
    finally:
        daemon.kill()
        daemon.wait()


async def test_connections_that_are_cut_cost_no_byte_twice(hub: StandInHub) -> None:
    hub.cut_after = 400_000
    folder, _ = await search(MODEL, lambda done, total: None)
    assert (folder / EXTRA).read_bytes() == hub.files[EXTRA]
    assert hub.sent[EXTRA] == len(hub.files[EXTRA])


async def test_a_hub_without_ranges_is_asked_from_the_start(hub: StandInHub, cache: Path) -> None:
    hub.no_ranges = True
    blobs = cache / f"models--{MODEL.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hub.etag(EXTRA)}.exod-part").write_bytes(b"\xff" * 1000)
    folder, _ = await search(MODEL, lambda done, total: None)
    assert (folder / EXTRA).read_bytes() == hub.files[EXTRA]


@pytest.mark.parametrize("added", [-5000, 5000], ids=["more comes", "less comes"])
async def test_a_hub_that_lies_about_sizes_is_named_and_leaves_no_file(
    hub: StandInHub, cache: Path, added: int
) -> None:
    hub.added_size = added
    error = await refused()
    assert error.code == "damaged"
    assert "size" in str(error)
    assert not finished(cache, hub.etag(EXTRA))


async def test_damage_on_the_way_is_found_by_the_checksum(hub: StandInHub, cache: Path) -> None:
    hub.damaged = True
    error = await refused()
    assert error.code == "damaged"
    assert not finished(cache, hub.etag(EXTRA))


async def test_a_gated_model_says_where_to_ask_for_it(hub: StandInHub) -> None:
    hub.refuse = (401, "GatedRepo")
    error = await refused()
    assert error.code == "gated"
    assert f"{hub.url}/{MODEL}" in str(error)
    assert "hf auth login" in str(error)


async def test_a_model_that_is_nowhere_is_named(hub: StandInHub) -> None:
    hub.missing = True
    error = await refused()
    assert error.code == "no_such_model"
    assert "127.0.0.1" in str(error)


async def test_a_hub_that_is_busy_for_good_is_named(hub: StandInHub) -> None:
    hub.refuse = (503, "")
    error = await refused()
    assert error.code == "download"
    assert "503" in str(error)


async def test_a_dead_network_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = await refused()
    assert error.code == "no_network"
    assert "127.0.0.1:9" in str(error)


async def test_offline_mode_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = await refused()
    assert error.code == "no_network"
    assert "HF_HUB_OFFLINE" in str(error)


async def test_a_model_that_is_too_large_for_the_disk_is_refused_before_a_byte_comes(hub: StandInHub) -> None:
    hub.added_size = 1 << 50
    error = await refused()
    assert error.code == "disk_full"
    assert "HF_HOME" in str(error)
    assert not hub.sent


def test_what_may_be_fetched_is_what_a_rank_reads() -> None:
    assert "*.bin" not in download_files.PATTERNS
    assert "model*.safetensors" in download_files.PATTERNS
