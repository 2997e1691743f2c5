"""Functions fit on a screen, files hold one concept, folders can be read at a glance."""

from __future__ import annotations

from pathlib import Path

from tests import shape
from tests.shape import measure, table

NOW = measure()


def test_functions_are_short() -> None:
    assert NOW.median <= shape.MEDIAN_FUNCTION, table(NOW)
    assert NOW.p90 <= shape.P90_FUNCTION, table(NOW)
    assert [one for one in NOW.functions if one.size > shape.LONGEST_FUNCTION] == []


def test_files_are_no_longer_than_what_one_concept_needs() -> None:
    assert [one for one in NOW.files if one.size > shape.LONGEST_FILE] == []


def test_folders_hold_few_modules() -> None:
    assert [one for one in NOW.folders if one.size > shape.MODULES_IN_A_FOLDER] == []


def test_each_size_is_measured(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").touch()
    lines = [
        "def long() -> None:",
        *["    pass"] * 70,
        "",
        "class C:",
        "    async def short(self) -> None:",
        "        pass",
    ]
    (room / "one.py").write_text("\n".join(lines))
    (room / "two.py").write_text("x = 1\n" * 501)
    found = measure(tmp_path, ("room",))
    assert [(one.size, one.name) for one in found.functions] == [
        (2, "room/one.py:74 short"),
        (71, "room/one.py:1 long"),
    ]
    assert found.files[-1] == shape.Sized(501, "room/two.py")
    assert found.folders == [shape.Sized(2, "room")]
    assert "    71   at most 60   room/one.py:1 long" in table(found)
