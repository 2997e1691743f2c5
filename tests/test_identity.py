"""Who a node is: a stable id, a rising incarnation, and one owner of the folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exod.errors import StartError
from exod.identity import IDENTITY_FILE, STATE_FILE, claim


def a_life(folder: Path) -> tuple[str, int]:
    identity = claim(folder)
    identity.release()
    return identity.id, identity.incarnation


def test_the_id_is_stable_and_the_incarnation_rises(tmp_path: Path) -> None:
    lives = [a_life(tmp_path / "data") for _ in range(5)]
    assert len({node_id for node_id, _ in lives}) == 1
    assert len(lives[0][0]) == 16
    incarnations = [incarnation for _, incarnation in lives]
    assert incarnations == sorted(set(incarnations))
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    for name in (IDENTITY_FILE, STATE_FILE):
        assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600


def test_two_folders_are_two_nodes(tmp_path: Path) -> None:
    assert a_life(tmp_path / "one")[0] != a_life(tmp_path / "other")[0]


def test_the_incarnation_follows_the_wall_clock_and_survives_its_going_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = time.time_ns() // 1_000_000
    _, first = a_life(tmp_path)
    assert first >= before
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert a_life(tmp_path)[1] == first + 1


@pytest.mark.parametrize(
    "torn", [b"", b"{", b"[]", b'{"incarnation": -1}', b'{"incarnation": 99999999999999999999}']
)
def test_a_torn_state_file_costs_nothing(tmp_path: Path, torn: bytes) -> None:
    node_id, first = a_life(tmp_path)
    (tmp_path / STATE_FILE).write_bytes(torn)
    time.sleep(0.005)  # the wall clock alone makes it rise now
    again, second = a_life(tmp_path)
    assert again == node_id
    assert first < second < 1 << 62


@pytest.mark.parametrize("broken", [b"", b"{}", b'{"id": "XYZ"}', b'{"id": 3}', b'{"id": "00000000000000AA"}'])
def test_a_broken_identity_is_kept_aside_and_a_new_node_begins(tmp_path: Path, broken: bytes) -> None:
    old, _ = a_life(tmp_path)
    (tmp_path / IDENTITY_FILE).write_bytes(broken)
    new, _ = a_life(tmp_path)
    assert new != old
    assert (tmp_path / f"{IDENTITY_FILE}.damaged").read_bytes() == broken
    assert a_life(tmp_path)[0] == new


def test_a_second_daemon_on_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    identity = claim(tmp_path)
    with pytest.raises(StartError, match=rf"another exod \(pid {os.getpid()}\) runs on this data folder"):
        claim(tmp_path)
    identity.release()
    a_life(tmp_path)


def test_a_folder_whose_daemon_was_killed_is_free(tmp_path: Path) -> None:
    code = """
import os, pathlib, sys
from exod.identity import claim
identity = claim(pathlib.Path(sys.argv[1]))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / STATE_FILE).exists()
    a_life(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"the data folder cannot be used: .*; set node.data_dir"):
        claim(tmp_path / "file" / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StartError, match="Permission denied"):
            claim(tmp_path / "data")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StartError, match="the data folder cannot be written: No space left on device"):
        claim(tmp_path)
    monkeypatch.undo()
    a_life(tmp_path)


def test_the_incarnation_is_on_disk_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data, then its name, then the folder that holds the name: in that order, or a power cut loses it."""
    a_life(tmp_path)
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        done.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync data")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        done.append(f"name {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    a_life(tmp_path)
    assert done == ["sync data", f"name {STATE_FILE}", "sync folder"]


def test_a_node_jumps_beyond_what_its_peers_saw(tmp_path: Path) -> None:
    identity = claim(tmp_path)
    seen = identity.incarnation + 5_000_000
    identity.jump_beyond(seen)
    assert identity.incarnation == seen + 1
    identity.jump_beyond(seen - 10)
    assert identity.incarnation == seen + 1
    identity.release()
    assert a_life(tmp_path)[1] > seen + 1


def test_epoch_numbers_are_remembered_and_only_grow(tmp_path: Path) -> None:
    identity = claim(tmp_path)
    identity.remember_epoch(7)
    identity.remember_epoch(3)
    identity.release()
    again = claim(tmp_path)
    assert again.epoch_number == 7
    again.release()


def test_a_full_disk_does_not_end_a_running_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = claim(tmp_path)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    identity.remember_epoch(7)
    identity.jump_beyond(identity.incarnation + 1)
    assert identity.epoch_number == 7
    identity.release()


def test_what_mlx_recommended_is_known_at_the_next_start(tmp_path: Path) -> None:
    identity = claim(tmp_path)
    assert identity.recommended_bytes == 0
    identity.remember_recommended(11_453_251_584)
    identity.release()
    again = claim(tmp_path)
    again.release()
    assert again.recommended_bytes == 11_453_251_584
