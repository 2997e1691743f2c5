"""`exoctl model` against a stand-in of the hub: list, download, go on, remove; with and without a daemon."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from exod.cli.commands.model_commands import progress_line
from exod.daemon_api.model_lines import ModelLine
from exod.model_transfer.model_places import FileList, copy_folder, put_together, write_list
from exod.model_transfer.transfer_messages import OfferedFile
from exoengine.embedded import model_folder
from tests.cli.running import Exoctl, served
from tests.engine_service.stand_in_hub import MODEL, StandInHub, model_files, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def exoctl(tmp_path: Path) -> Exoctl:
    return Exoctl(tmp_path)


@pytest.fixture
def hub(exoctl: Exoctl, tmp_path: Path) -> Iterator[StandInHub]:
    with serving(StandInHub(model_files(Path(model_folder("embedded:count"))))) as one:
        exoctl.environment |= {"HF_ENDPOINT": one.url, "HF_HOME": str(tmp_path / "hf")}
        yield one


async def test_a_model_is_downloaded_listed_told_of_and_removed(exoctl: Exoctl, hub: StandInHub) -> None:
    empty = await exoctl.run("model")
    assert (empty.code, "exoctl model pull" in empty.out) == (0, True)
    pulled = await exoctl.run("model", "pull", MODEL)
    assert pulled.code == 0, pulled.err
    assert f"exoctl engine load {MODEL}" in pulled.out
    listed = await exoctl.run("model", "ls")
    assert (MODEL in listed.out, "whole" in listed.out) == (True, True)
    told = json.loads((await exoctl.run("model", "info", MODEL, "--json")).out)
    assert told["layers"] == 8
    assert "snapshots" in told["folder"]
    asked = len(hub.asked)
    again = await exoctl.run("model", "pull", MODEL)
    assert (again.code, len(hub.asked)) == (0, asked), "what is here whole is taken as it is"
    unasked = await exoctl.run("model", "rm", MODEL)
    assert (unasked.code, "--yes" in unasked.err) == (2, True)
    removed = await exoctl.run("model", "rm", MODEL, "--yes", "--json")
    assert json.loads(removed.out)["freed_bytes"] > 1_000_000
    assert json.loads((await exoctl.run("model", "ls", "--json")).out) == {"schema": 1, "models": []}
    gone = await exoctl.run("model", "info", MODEL)
    assert (gone.code, f"exoctl model pull {MODEL}" in gone.err) == (2, True)


async def test_info_knows_the_embedded_model_and_any_folder_and_offers_no_pull_of_what_is_no_repository(
    exoctl: Exoctl, hub: StandInHub
) -> None:
    folder = str(model_folder("embedded:count"))
    for name in ("embedded:count", folder):
        told = json.loads((await exoctl.run("model", "info", name, "--json")).out)
        assert (told["name"], told["layers"], told["folder"]) == (name, 8, folder)
    for name in ("embedded:nothing", "/no/such/folder", "../no", "nothing", "<b>"):
        for ended in [await exoctl.run("model", command, name) for command in ("info", "rm")]:
            assert (ended.code, "exoctl model pull" in ended.err, ended.err.count("\n")) == (2, False, 1), ended


async def test_a_download_that_was_cut_is_shown_and_goes_on(exoctl: Exoctl, hub: StandInHub) -> None:
    hub.damaged = True
    failed = await exoctl.run("model", "pull", MODEL)
    assert failed.code == 4
    assert "checksum" in failed.err
    assert failed.out == ""
    assert [line for line in failed.err.splitlines() if "MiB of" not in line] == failed.err.splitlines()[-1:]
    (model,) = json.loads((await exoctl.run("model", "ls", "--json")).out)["models"]
    assert (model["whole"], model["in_use"]) == (False, False)
    assert (await exoctl.run("model", "info", MODEL)).code == 2
    hub.damaged = False
    assert (await exoctl.run("model", "pull", MODEL)).code == 0


async def test_a_model_without_links_has_its_size_and_one_that_is_a_link_is_left_alone(
    exoctl: Exoctl, hub: StandInHub, tmp_path: Path
) -> None:
    """A disk without links holds files where the hub's cache has links; a link leads to somebody's own place."""
    cache = tmp_path / "hf" / "hub"
    own = tmp_path / "elsewhere"
    shutil.copytree(model_folder("embedded:count"), own / "snapshots" / "1")
    cache.mkdir(parents=True)
    (cache / "models--o--linked").symlink_to(own)
    refused = await exoctl.run("model", "rm", "o/linked", "--yes")
    assert (refused.code, f"is a link to {own}" in refused.err) == (4, True), refused.err
    assert (own / "snapshots" / "1" / "config.json").is_file()
    shutil.copytree(own, cache / "models--o--plain")
    removed = await exoctl.run("model", "rm", "o/plain", "--yes", "--json")
    assert json.loads(removed.out)["freed_bytes"] > 1_000_000


async def test_what_is_no_repository_is_named(exoctl: Exoctl, hub: StandInHub, tmp_path: Path) -> None:
    hub.missing = True
    missing = await exoctl.run("model", "pull", "nobody/nothing")
    assert (missing.code, "check the spelling" in missing.err) == (2, True)
    folder = await exoctl.run("model", "pull", str(tmp_path))
    assert (folder.code, "load it by its path" in folder.err) == (2, True)
    word = await exoctl.run("model", "pull", "llama")
    assert (word.code, "llama" in word.err) == (2, True)


async def test_the_model_that_runs_is_not_removed(exoctl: Exoctl, hub: StandInHub) -> None:
    assert (await exoctl.run("model", "pull", MODEL)).code == 0
    async with served(exoctl) as daemon:
        status = daemon.status_now
        engine = msgspec.structs.replace(status.engine, model=MODEL)
        daemon.status_now = msgspec.structs.replace(status, engine=engine)
        refused = await exoctl.run("model", "rm", MODEL, "--yes")
        listed = await exoctl.run("model", "ls")
    assert (refused.code, "exoctl engine unload" in refused.err) == (2, True)
    assert "in use" in listed.out


def test_progress_tells_share_rate_and_time_left() -> None:
    assert progress_line(0, 0, 0, 0.0) == "0.0 MiB of 0.0 MiB"
    line = progress_line(600 * 2**20, 1000 * 2**20, 200 * 2**20, 10.0)
    assert line == "60 % 600 MiB of 1000 MiB, 21.0 MB/s, 20 s left"


async def test_a_copy_of_another_nodes_folder_is_listed_by_its_path_and_removed(
    exoctl: Exoctl, hub: StandInHub, tmp_path: Path
) -> None:
    copies = exoctl.socket.parent / "models"
    place = copy_folder(copies, "/models/mine")
    (place / "blobs").mkdir(parents=True)
    files = []
    for name, content in hub.files.items():
        etag = hashlib.sha256(content).hexdigest()
        (place / "blobs" / etag).write_bytes(content)
        files.append(OfferedFile(name, len(content), etag))
    listed = FileList("/models/mine", "a" * 40, tuple(files))
    write_list(place, listed)
    put_together(place, listed)
    shown = await exoctl.run("model", "ls")
    assert ("/models/mine" in shown.out, "whole" in shown.out) == (True, True)
    assert (await exoctl.run("model", "info", "/models/mine")).code == 0
    assert (await exoctl.run("model", "rm", "/models/mine", "--yes")).code == 0
    assert not place.exists()
    assert json.loads((await exoctl.run("model", "ls", "--json")).out) == {"schema": 1, "models": []}


async def test_where_exod_runs_it_is_asked_and_every_nodes_progress_is_shown(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        nodes = [node.id for node in daemon.status_now.nodes]
        lines = tuple(
            ModelLine(node, f"studio{number}", MODEL, "here", 100, 100, sources=("studio1",))
            for number, node in enumerate(nodes, 1)
        )
        daemon.status_now = msgspec.structs.replace(daemon.status_now, models=lines)
        pulled = await exoctl.run("model", "pull", MODEL, "--all")
        failed = msgspec.structs.replace(lines[0], state="failed", code="disk_full", text="free 3 GiB")
        daemon.status_now = msgspec.structs.replace(daemon.status_now, models=(failed, *lines[1:]))
        refused = await exoctl.run("model", "pull", MODEL)
        paused = await exoctl.run("model", "pause", MODEL)
    assert (pulled.code, f"exoctl engine load {MODEL}" in pulled.out) == (0, True), pulled.err
    assert "studio1: 100 % of 0.0 MiB, from studio1" in pulled.out
    assert (refused.code, "free 3 GiB" in refused.out) == (4, True)
    assert paused.code == 0
    assert [one for one in daemon.asked if one[0].startswith("model")] == [
        ("model_pull", MODEL, True), ("model_pull", MODEL, False), ("model_pause", MODEL),
    ]  # fmt: skip
