"""A command is remembered by every node, over restarts, until another command or a newer configuration."""

from __future__ import annotations

from pathlib import Path

from exod.model import ClusterWish
from exod.shared_wish import FILE, SharedWish


def kept(
    folder: Path, told: list[ClusterWish] | None = None, model: str = "", written_at: float = 0.0
) -> SharedWish:
    return SharedWish(folder, "studio1", model, written_at, (told if told is not None else []).append)


def test_a_model_that_was_loaded_by_command_outlives_the_daemon(tmp_path: Path) -> None:
    told: list[ClusterWish] = []
    kept(tmp_path, told).ask_model("/models/real")
    assert [(wish.model, wish.by) for wish in told] == [("/models/real", "studio1")]
    again = kept(tmp_path).current
    assert again is not None
    assert again.model == "/models/real"


def test_a_drain_keeps_the_model_and_ends_with_the_next_load_or_the_next_life(tmp_path: Path) -> None:
    wish = kept(tmp_path)
    wish.ask_model("/models/real")
    wish.ask_drain()
    assert wish.current is not None
    assert (wish.current.model, wish.current.draining) == ("/models/real", True)
    again = kept(tmp_path).current
    assert again is not None
    assert not again.draining
    wish.ask_model("/models/real")
    assert not wish.current.draining


def test_a_newer_wish_of_a_peer_is_taken_and_an_older_one_is_not(tmp_path: Path) -> None:
    told: list[ClusterWish] = []
    wish = kept(tmp_path, told)
    wish.ask_model("/models/one")
    assert wish.current is not None
    newer = ClusterWish(wish.current.at + 5.0, "studio2", "/models/two")
    wish.heard(newer)
    wish.heard(newer)
    wish.heard(ClusterWish(1.0, "studio3", "/models/three"))
    wish.heard(None)
    assert [one.model for one in told] == ["/models/one", "/models/two"]
    wish.ask_model("/models/four")
    assert wish.current.at > newer.at, "a command is later than what is known, whatever the clock says"


def test_a_configuration_that_is_newer_than_the_last_command_counts(tmp_path: Path) -> None:
    wish = kept(tmp_path)
    wish.ask_model("/models/loaded")
    assert wish.current is not None
    older = kept(tmp_path, model="/models/configured", written_at=wish.current.at - 10.0)
    newer = kept(tmp_path, model="/models/configured", written_at=wish.current.at + 10.0)
    assert older.current is not None
    assert newer.current is not None
    assert (older.current.model, newer.current.model) == ("/models/loaded", "/models/configured")


def test_a_folder_that_cannot_be_written_keeps_no_wish_and_stops_nothing(tmp_path: Path) -> None:
    told: list[ClusterWish] = []
    kept(tmp_path / "missing", told).ask_model("/models/real")
    assert told[0].model == "/models/real"


def test_a_damaged_file_is_no_wish(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("not json")
    assert kept(tmp_path).current is None
