"""The control socket's place in the file system: who may open it, what is replaced, and what is left alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from exod.errors import StartError
from exod.local_api import server
from exod.local_api.server import LocalApi
from tests.fake_daemon import FakeDaemon
from tests.local_api.serving import served, soon

pytestmark = pytest.mark.anyio


async def test_a_socket_whose_file_was_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cleaners of temporary folders and people do that; the daemon would be out of reach until its next start."""
    monkeypatch.setattr(server, "PLACE_CHECK_S", 0.01)
    folder = tmp_path / "data"
    folder.mkdir()
    async with served(folder) as place:
        before = await place.client()
        shutil.rmtree(folder)
        await soon(place.path.exists)
        assert stat.S_IMODE(place.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert "result" in await (await place.client()).ask("status")
        assert "result" in await before.ask("status")


async def test_a_socket_of_another_daemon_in_the_place_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PLACE_CHECK_S", 0.01)
    async with served(tmp_path) as place:
        place.path.rename(tmp_path / "mine")
        place.path.write_text("another's")
        await asyncio.sleep(0.1)
        assert place.path.read_text() == "another's"
        place.path.unlink()


async def test_only_this_user_may_open_the_socket(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        assert stat.S_IMODE(place.path.stat().st_mode) == 0o600


async def test_a_second_daemon_on_the_folder_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        second = LocalApi(FakeDaemon(), place.path, debug_enabled=False)
        with pytest.raises(StartError, match="another exod runs on this data folder") as caught:
            second.start()
        assert "\n" not in str(caught.value)
        second.close()
        assert "result" in await (await place.client()).ask("models"), "the first one still serves"


async def test_the_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(tmp_path / "exod.sock"))
    left_behind.listen()
    left_behind.close()
    async with served(tmp_path) as place:
        assert "result" in await (await place.client()).ask("models")


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "exod.sock"
    file.write_text("mine")
    with pytest.raises(StartError, match="is no socket; move it away"):
        LocalApi(FakeDaemon(), file, debug_enabled=False).start()
    assert file.read_text() == "mine"


async def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    os.mkdir(folder)
    with pytest.raises(StartError, match=r"choose a shorter node\.data_dir"):
        LocalApi(FakeDaemon(), folder / "exod.sock", debug_enabled=False).start()


async def test_closing_leaves_another_daemons_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "exod.sock"
    first = LocalApi(FakeDaemon(), path, debug_enabled=False)
    first.start()
    path.unlink()
    second = LocalApi(FakeDaemon(), path, debug_enabled=False)
    second.start()
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()
