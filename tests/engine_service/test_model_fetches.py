"""What a node is asked to fetch is kept over a crash; a folder of another node is found by its path once it is
here.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from exod.core.models.model_events import PullsHeard
from exod.engine_service.model_fetches import ModelFetches
from exod.errors import RequestError
from exod.model import NodeId, PullRecord
from exod.model_transfer.model_places import FileList, copy_folder, put_together, write_list
from exod.model_transfer.peer_files import Credentials
from exod.model_transfer.transfer_messages import OfferedFile
from exoengine.embedded import model_folder
from exoengine.model_files.model_folder import ModelFolderError

pytestmark = pytest.mark.anyio

FOLDER = "/models/of/another/node"


class Told:
    def __init__(self, folder: Path) -> None:
        self.events: list[tuple[str, str]] = []
        self.changes = 0
        self.fetches = ModelFetches(
            NodeId("a" * 16), "studio1", True, folder, lambda: Credentials("", ""), self._event, self._changed
        )

    def _event(self, kind: str, model: str, data: dict[str, object]) -> None:
        self.events.append((kind, model))

    def _changed(self) -> None:
        self.changes += 1


def ignored(done_bytes: int, total_bytes: int) -> None:
    pass


async def test_a_folder_that_no_command_copied_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError) as caught:
        await Told(tmp_path).fetches.find(FOLDER, ignored)
    assert caught.value.code == "no_folder"
    assert f"exoctl model pull {FOLDER}" in str(caught.value)


async def test_a_copy_is_found_by_the_path_that_it_has_on_the_other_node(tmp_path: Path) -> None:
    told = Told(tmp_path)
    place = copy_folder(told.fetches.copies, FOLDER)
    (place / "blobs").mkdir(parents=True)
    etag = "a" * 64
    (place / "blobs" / etag).write_bytes(b"12")
    listed = FileList(FOLDER, "c" * 40, (OfferedFile("model.safetensors", 2, etag),))
    write_list(place, listed)
    folder = put_together(place, listed)
    assert await told.fetches.find(FOLDER, ignored) == folder


async def test_what_was_asked_for_is_kept_over_a_crash(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(model_folder("embedded:count"), mine)
    told = Told(tmp_path)
    await told.fetches.pull("maker/tiny", everywhere=True)
    await told.fetches.pull(str(mine), everywhere=False)
    assert told.events == [("model.pull", "maker/tiny"), ("model.pull", str(mine))]
    assert told.changes
    again = Told(tmp_path).fetches
    assert {(one.model, one.everywhere) for one in again.pulls()} == {("maker/tiny", True), (str(mine), False)}
    assert again.offered_folders() == {str(mine): mine}
    again.pause("maker/tiny")
    assert {one.model for one in Told(tmp_path).fetches.pulls() if one.paused} == {"maker/tiny"}


@pytest.mark.parametrize("model", ["tiny", "../up", "/no/such/folder", "a/b/c"])
async def test_what_can_be_no_model_is_refused_before_anybody_hears_of_it(tmp_path: Path, model: str) -> None:
    told = Told(tmp_path)
    with pytest.raises(RequestError):
        await told.fetches.pull(model, everywhere=False)
    assert told.fetches.pulls() == ()
    with pytest.raises(RequestError):
        told.fetches.pause(model)


async def test_another_nodes_record_offers_no_folder_of_this_one(tmp_path: Path) -> None:
    """A peer that asks for the path of a folder here, over the control plane, is given nothing of it."""
    told = Told(tmp_path)
    told.fetches.feed(PullsHeard((PullRecord(str(tmp_path), 1.0, "studio2", everywhere=True),)))
    assert told.fetches.pulls()
    assert told.fetches.offered_folders() == {}


async def test_a_fetch_tells_its_state_once_a_second_whoever_looks_at_it(tmp_path: Path) -> None:
    """Those who are told look at this node again, which wakes the loop that told them."""
    told = Told(tmp_path)
    fetches = told.fetches
    loop = asyncio.create_task(fetches.run())
    await asyncio.sleep(0)
    fetches._running["maker/tiny"] = None  # type: ignore[assignment]  # a process that says nothing
    for _ in range(200):
        fetches._kick.set()
        await asyncio.sleep(0.002)
    fetches._running.clear()
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert 1 <= told.changes <= 5
