"""What an environment lacks of exod's requirements is found, and the command names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exoengine import installed
from exoengine.installed import Lack, install_command, lacking, reinstall_command


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages' metadata, found before the real ones."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def put(site: Path, name: str, version: str, *needs: str) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs)]) + "\n")


def test_this_environment_lacks_nothing() -> None:
    assert lacking() == []


def test_a_package_that_is_not_there_is_named_with_what_needs_it(site: Path) -> None:
    put(site, "roof", "1.0", "walls>=2", "floor")
    put(site, "walls", "2.5", "xnails<4,>=3")
    put(site, "floor", "1.0")
    assert lacking("roof") == [Lack("xnails<4,>=3", "xnails is not installed, and walls needs it")]


def test_a_version_that_is_too_old_for_exod_itself_is_named(site: Path) -> None:
    put(site, "roof", "1.0", "walls>=2", "floor")
    put(site, "walls", "1.9")
    put(site, "floor", "1.0", "walls>=7")
    assert lacking("roof") == [Lack("walls>=2", "walls is 1.9, and roof needs >=2")]


def test_what_only_others_need_is_not_asked_for(site: Path) -> None:
    put(site, "roof", "1.0", "xnails; extra == 'dev'", "xnails; sys_platform == 'plan9'", "walls[paint]")
    put(site, "walls", "1.0", "xbrush; extra == 'paint'", "xglue; extra == 'other'")
    assert lacking("roof") == [Lack("xbrush", "xbrush is not installed, and walls needs it")]


def test_packages_that_need_each_other_come_to_an_end(site: Path) -> None:
    put(site, "roof", "1.0", "walls")
    put(site, "walls", "1.0", "roof", "walls")
    assert lacking("roof") == []


def test_sources_that_were_never_installed_lack_nothing() -> None:
    assert lacking("no-such-package-at-all") == []


def test_without_packaging_it_says_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert lacking() == [Lack("packaging", "packaging is not installed")]


def test_the_command_is_one_line_for_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/Users/me/my tools/bin/python3")
    monkeypatch.setattr(installed, "_has_pip", lambda: True)
    told = install_command(["llguidance>=1.9.1", "llguidance>=1.9.1", "mlx"])
    assert told == "'/Users/me/my tools/bin/python3' -m pip install 'llguidance>=1.9.1' mlx"
    assert reinstall_command("mlx").startswith(
        "'/Users/me/my tools/bin/python3' -m pip install --force-reinstall --no-deps mlx==0."
    )


def test_an_environment_of_uv_has_no_pip_and_gets_another_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/x/bin/python3")
    monkeypatch.setattr(installed, "_has_pip", lambda: False)
    assert install_command(["mlx<1,>=0.32"]) == "uv pip install --python /x/bin/python3 'mlx<1,>=0.32'"
    assert "uv pip install --python /x/bin/python3 --reinstall-package mlx mlx==" in reinstall_command("mlx")


def test_the_module_says_nothing_where_all_is_there() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "exoengine.installed"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
