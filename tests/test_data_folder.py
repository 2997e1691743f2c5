"""A data folder that is removed under a running daemon: it is written again, or a reason says why not."""

from __future__ import annotations

import json
import shutil
import signal
import stat
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exod.errors import StartError
from exod.identity import IDENTITY_FILE, LOCK_FILE, STATE_FILE, FolderKeeper, Identity, claim
from exod.log import RotatingFile
from tests.test_single_node import ENDS_WITHIN_S, exoctl, free_port, start, write_config

DEADLINE_S = 60.0


def keeper(identity: Identity, folder: Path, *writers: Callable[[], None]) -> tuple[FolderKeeper, list[str]]:
    told: list[str] = []
    return FolderKeeper(identity, folder, writers, lambda kind, data: told.append(kind)), told


def test_an_identity_is_written_again_and_the_folder_is_locked_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    identity = claim(folder)
    keeps, told = keeper(identity, folder, lambda: (folder / "others").touch())
    keeps.look()
    assert told == []
    assert not (folder / "others").exists()
    shutil.rmtree(folder)
    keeps.look()
    keeps.look()
    assert told == ["folder.restored"]
    assert keeps.facts() == ()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "others").exists()
    with pytest.raises(StartError, match="another exod"):
        claim(folder)
    identity.release()
    again = claim(folder)
    assert (again.id, again.incarnation > identity.incarnation) == (identity.id, True)
    again.release()


def test_what_lay_in_the_folder_is_enough_to_be_missed(tmp_path: Path) -> None:
    identity = claim(tmp_path)
    for file in list(tmp_path.iterdir()):
        file.unlink()
    keeps, told = keeper(identity, tmp_path)
    keeps.look()
    assert told == ["folder.restored"]
    assert {file.name for file in tmp_path.iterdir()} == {IDENTITY_FILE, STATE_FILE, LOCK_FILE}
    identity.release()


def test_a_single_file_is_a_persons_to_remove(tmp_path: Path) -> None:
    """`exoctl cluster renew-identity` moves it aside while the daemon runs."""
    identity = claim(tmp_path)
    (tmp_path / IDENTITY_FILE).unlink()
    keeps, told = keeper(identity, tmp_path)
    keeps.look()
    assert told == []
    assert not (tmp_path / IDENTITY_FILE).exists()
    identity.release()


def test_where_it_cannot_be_written_the_reason_lasts_until_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    identity = claim(folder)
    shutil.rmtree(folder)
    folder.write_text("in the way")
    keeps, told = keeper(identity, folder)
    keeps.look()
    (fact,) = keeps.facts()
    assert (fact.code, fact.subject) == ("data_folder_lost", identity.id)
    assert str(folder) in fact.text
    folder.unlink()
    keeps.look()
    assert (keeps.facts(), told) == ((), ["folder.restored"])
    identity.release()


def test_a_writer_that_fails_is_asked_again(tmp_path: Path) -> None:
    identity = claim(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    fails = [OSError(28, "No space left on device")]

    def write() -> None:
        if fails:
            raise fails.pop()

    keeps, told = keeper(identity, tmp_path / "data", write)
    keeps.look()
    assert "No space left on device" in keeps.facts()[0].text
    keeps.look()
    assert (keeps.facts(), told) == ((), ["folder.restored"])
    identity.release()


def test_a_folder_that_another_daemon_took_or_that_is_another_nodes_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    identity = claim(folder)
    keeps, told = keeper(identity, folder)
    shutil.rmtree(folder)
    other = claim(folder)
    keeps.look()
    assert "another exod" in keeps.facts()[0].text
    other.release()
    keeps.look()
    assert f"is of node {other.id}" in keeps.facts()[0].text
    assert json.loads((folder / IDENTITY_FILE).read_text())["id"] == other.id
    assert told == []
    identity.release()


def test_a_log_whose_file_was_removed_goes_on_in_a_new_one(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "logs" / "exod.log", max_bytes=1000, keep=1)
    file.write("before\n")
    file.flush()
    shutil.rmtree(tmp_path / "logs")
    file.write("after\n")
    file.flush()
    assert (tmp_path / "logs" / "exod.log").read_text() == "after\n"


# --- a running daemon ---------------------------------------------------------------------------------------


def until(found: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (result := found()):
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.05)
    return result


def codes(port: int) -> set[str]:
    """Of the reasons that the API tells: the control socket is gone with the folder."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=10) as reply:
        return {reason["code"] for reason in json.load(reply)["reasons"]}


def test_a_running_daemon_stays_the_node_that_it_is(tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "data"
    config = write_config(tmp_path, api={"port": port}, engine={"enabled": False})
    process = start(config)
    try:
        until((folder / "exod.sock").exists, "it has started")
        assert exoctl(config, "wait", "--for", "healthy", "--timeout", "60").returncode == 0
        kept = ("identity.json", "node.key", "cluster.key")
        before = {name: (folder / name).read_bytes() for name in kept}
        folder.rename(tmp_path / "removed")  # at once: the daemon may write meanwhile
        folder.write_text("in the way")
        until(lambda: "data_folder_lost" in codes(port), "a reason says that the folder is lost")
        folder.unlink()
        until(lambda: "data_folder_lost" not in codes(port), "the reason is gone")
        assert {name: (folder / name).read_bytes() for name in kept} == before
        assert {"state.json", "membership.json", "events.ndjson"} <= {one.name for one in folder.iterdir()}
        until(lambda: exoctl(config, "status").returncode != 3, "the control socket is there again")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        process.kill()
    assert process.returncode == 0
