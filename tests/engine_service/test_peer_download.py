"""The process of a download that takes files from another node: what it takes, goes on with, refuses and lacks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from exod.engine_service.download_messages import AllowedSources, Job, Progress
from exod.engine_service.model_search import DownloadProcess
from exod.model_transfer.model_places import FileList, read_list, repository_folder, write_list
from exod.model_transfer.peer_files import Credentials, FileSource
from exod.model_transfer.transfer_messages import OfferedFile
from exod.peers.trust import credentials
from exoengine.model_files.model_folder import ModelFolderError
from tests.model_transfer.test_file_transfer import GIVER, KEY, MODEL, TAKER, WEIGHTS, Giver

pytestmark = pytest.mark.anyio


@pytest.fixture
def giver(tmp_path: Path) -> Iterator[Giver]:
    one = Giver(tmp_path / "giver")
    one.has_repository()
    yield one
    one.listener.close()
    one.server.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The taker's folder of the model. There is no hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "taker"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return repository_folder(tmp_path / "taker" / "hub", MODEL)


def weights(place: Path) -> Path:
    listed = read_list(place)
    assert listed is not None
    return place / "blobs" / next(file.etag for file in listed.files if file.name.endswith(".safetensors"))


def found_below(place: Path, pattern: str) -> list[Path]:
    return list(place.rglob(pattern))


async def download(giver: Giver, may_ask_hub: bool = False, within_s: float = 60.0) -> tuple[Path, list[Progress]]:
    told: list[Progress] = []
    process = DownloadProcess(Job(MODEL), told.append)
    source = FileSource(GIVER, "giver", "", "", "127.0.0.1", giver.port)
    process.tell(AllowedSources(may_ask_hub, (source,), Credentials(*credentials(KEY, TAKER))))
    async with asyncio.timeout(within_s):
        return await process.run(), told


async def test_a_model_comes_from_a_node_where_no_hub_is(giver: Giver, place: Path) -> None:
    folder, told = await download(giver)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == b"{}"
    assert told[-1].sources == ("giver",)
    assert told[-1].done_bytes == told[-1].total_bytes == len(WEIGHTS) + 2
    assert not found_below(place, "*.exod-part")


async def test_what_had_come_is_not_fetched_again(giver: Giver, place: Path) -> None:
    await download(giver)
    blob = weights(place)
    half = len(WEIGHTS) // 2
    (place / "blobs" / f"{blob.name}.exod-part").write_bytes(WEIGHTS[:half])
    blob.unlink()
    (place / "refs" / "main").unlink()
    before = giver.server.sent_bytes
    folder, _ = await download(giver)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert giver.server.sent_bytes - before == len(WEIGHTS) - half


async def test_a_node_that_sends_something_else_is_told_of_and_leaves_no_file(giver: Giver, place: Path) -> None:
    giver_place = repository_folder(giver.cache, MODEL)
    listed = giver.connect().files(MODEL, lambda: None)
    damaged = giver_place / "blobs" / listed.files[1].etag
    damaged.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    with pytest.raises(ModelFolderError) as caught:
        await download(giver, may_ask_hub=True)
    assert caught.value.code == "damaged"
    assert "giver" in str(caught.value)
    assert f"exoctl model rm {MODEL}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not weights(place).exists()
    assert not found_below(place, "snapshots/*/model.safetensors")


async def test_without_a_hub_it_says_what_no_node_has(giver: Giver, place: Path) -> None:
    giver_place = repository_folder(giver.cache, MODEL)
    listed = giver.connect().files(MODEL, lambda: None)
    missing = OfferedFile("model-2.safetensors", 5 << 20, "f" * 64)
    write_list(giver_place, FileList(MODEL, listed.commit, (*listed.files, missing)))
    (giver_place / "refs" / "main").unlink()
    with pytest.raises(ModelFolderError) as caught:
        await download(giver, may_ask_hub=True)
    assert caught.value.code == "no_network"
    assert "missing are" in str(caught.value)
    assert "model-2.safetensors" in str(caught.value)
