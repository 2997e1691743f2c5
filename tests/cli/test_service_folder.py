"""Where root makes a folder for a user: over no link that this user may have laid."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exod.cli.service.launchd import make_folder

ME = (os.getuid(), os.getgid())


def test_the_folder_and_what_is_missing_above_it_are_made(tmp_path: Path) -> None:
    make_folder(tmp_path / "Library" / "Logs" / "exod", None)
    make_folder(tmp_path / "Library" / "Logs" / "exod", ME)
    assert (tmp_path / "Library" / "Logs" / "exod").is_dir()
    assert (tmp_path / "Library" / "Logs" / "exod").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a link that belongs to another user")
@pytest.mark.parametrize("link", ["Library", "Library/Logs", "Library/Logs/exod"])
def test_root_follows_no_users_link(tmp_path: Path, link: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    place = tmp_path / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(victim)
    os.lchown(place, 12345, 12345)
    with pytest.raises(OSError, match="link of a user"):
        make_folder(tmp_path / "Library" / "Logs" / "exod", (12345, 12345))
    assert victim.stat().st_uid == 0
    assert list(victim.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_that_root_makes_belongs_to_the_user(tmp_path: Path) -> None:
    make_folder(tmp_path / "exod", (12345, 12346))
    found = (tmp_path / "exod").stat()
    assert (found.st_uid, found.st_gid) == (12345, 12346)
    with pytest.raises(OSError, match="another user"):
        make_folder(tmp_path / "exod", (54321, 1))
