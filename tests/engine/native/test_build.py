"""Where the native group's module cannot be built or used: one clear line each, and never an exception."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from exoengine.native import build as building
from exoengine.native import recipe as recipes
from exoengine.native.build import VERDICT, build, status
from exoengine.native.recipe import NotBuildableError, Recipe, find_compiler, recipe


@pytest.fixture(autouse=True)
def nothing_prebuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "PREBUILT", tmp_path / "none")


@pytest.fixture
def cache(module: Path, tmp_path: Path) -> Path:
    """A cache with the session's module in it, tested there."""
    made = tmp_path / "cache"
    shutil.copytree(module.parent, made / module.parent.name)
    assert build(made).is_ready
    return made


def test_what_was_built_and_tested_is_ready_for_all_who_ask(cache: Path) -> None:
    found = status(cache)
    assert found.is_ready
    assert Path(found.file).is_relative_to(cache)


def test_before_the_first_build_status_names_the_command(tmp_path: Path) -> None:
    found = status(tmp_path)
    assert (found.reason, found.cure) == ("it has not been built yet", "exoctl engine native build")


def test_without_a_compiler_the_package_to_install_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    for found in (status(tmp_path / "cache"), build(tmp_path / "cache")):
        assert (found.reason, found.cure) == ("there is no C++ compiler", "sudo apt install g++")


def test_on_a_mac_without_developer_tools_nothing_is_run_that_opens_a_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(recipes, "APPLE_TOOLS", ("/nonexistent",))
    with pytest.raises(NotBuildableError, match="command line tools are missing") as caught:
        find_compiler()
    assert caught.value.cure == "xcode-select --install"


def test_a_nanobind_of_another_kind_is_named_with_both_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = dataclasses.replace(recipe(), internals=21, nanobind_version="3.0.1")
    monkeypatch.setattr(building, "recipe", lambda: other)
    found = build(tmp_path)
    assert "nanobind 3.0.1 does not match this MLX (internals 21, MLX has 22)" in found.reason
    assert found.cure == "make setup"


def test_a_compiler_that_fails_is_quoted_and_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'native_group.cpp:1: error: no room left' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    found = build(tmp_path / "cache")
    assert "could not build it: native_group.cpp:1: error: no room left" in found.reason
    assert status(tmp_path / "cache") == found


def test_a_compiler_that_hangs_is_ended_at_its_deadline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "slow"
    compiler.write_text("#!/bin/sh\nsleep 600\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(building, "BUILD_DEADLINE_S", 0.2)
    assert "did not end within" in build(tmp_path / "cache").reason


def test_a_compiler_does_not_outlive_the_process_that_wanted_it(tmp_path: Path) -> None:
    compiler, started = tmp_path / "slow", tmp_path / "pid"
    compiler.write_text(f"#!/bin/sh\necho $$ >{started}.new; mv {started}.new {started}; sleep 600\n")
    compiler.chmod(0o755)
    program = f"""
from pathlib import Path
from exoengine.native import build as building
building.PREBUILT = Path({str(tmp_path / "none")!r})
building.build(Path({str(tmp_path / "cache")!r}))
"""
    wanting = subprocess.Popen([sys.executable, "-P", "-c", program], env={**os.environ, "CXX": str(compiler)})
    end = time.monotonic() + 30
    while not started.exists():
        assert time.monotonic() < end, "the compiler never began"
        time.sleep(0.05)
    running = psutil.Process(int(started.read_text()))
    wanting.kill()
    wanting.wait()
    gone, _ = psutil.wait_procs([running], timeout=30)
    assert gone == [running]


def test_a_damaged_module_is_found_out_and_built_again(cache: Path) -> None:
    file = Path(status(cache).file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    found = status(cache)
    assert "is damaged or was never tested" in found.reason
    assert found.cure == "exoctl engine native build"
    assert build(cache).is_ready
    assert status(cache).is_ready


def test_a_damaged_module_that_cannot_be_built_again_is_said_to_be_damaged(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file that is cut off makes the process that loads it crash."""
    file = Path(status(cache).file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    build(cache)
    assert f"); {file} may be damaged" in status(cache).reason


def test_a_damaged_verdict_has_the_module_tested_again(cache: Path) -> None:
    verdict = next(cache.glob(f"*/{VERDICT}"))
    verdict.write_bytes(b"{")
    assert not status(cache).is_ready
    assert build(cache).is_ready


def test_a_cache_of_another_mlx_is_said_to_be_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(recipe(), key="0" * 20)
    monkeypatch.setattr(building, "recipe", lambda: other)
    found = status(cache)
    assert (found.reason, found.cure) == (
        "it was built for another MLX, Python or exod", "exoctl engine native build",
    )  # fmt: skip


def test_an_mlx_that_was_built_anew_has_the_module_tested_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_stamp", lambda _: (1, 2))
    assert "never tested with this MLX" in status(cache).reason
    assert build(cache).is_ready


def test_a_module_that_fails_its_self_test_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_run", lambda *_: "a sum is wrong: [[1.0, 2.0]]")
    monkeypatch.setattr(Recipe, "command", lambda self, compiler, out: out.touch() or ["true"])
    next(cache.glob(f"*/{VERDICT}")).unlink()
    found = build(cache)
    assert not found.is_ready
    assert "a sum is wrong" in found.reason


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in a folder's place")
    found = build(tmp_path / "data" / "native")
    assert f"{tmp_path / 'data'}" in found.reason
    assert "cannot be written" in found.reason
    assert "node.data_dir" in found.cure


def test_headers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    monkeypatch.setattr(recipes, "_package", lambda name: tmp_path)
    found = build(tmp_path / "cache")
    assert "came without its C++ headers" in found.reason
    mlx = f"mlx=={metadata.version('mlx')}"
    assert found.cure == f"{sys.executable} -m pip install --force-reinstall --no-deps {mlx}"


def test_the_command_says_what_there_is_in_one_line(cache: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "exoengine.native", "status", "--cache"]
    ready = subprocess.run([*command, str(cache)], capture_output=True, text=True, check=False)
    assert ready.returncode == 0
    assert len(ready.stdout.splitlines()) == 1


def test_exoctl_tells_it_without_a_daemon(module: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'[node]\ndata_dir = "{tmp_path}"\n')
    shutil.copytree(module.parent, tmp_path / "native" / module.parent.name)
    command = [sys.executable, "-m", "exod.cli.main", "--config", str(tmp_path / "config.toml"), "engine", "native"]
    built = subprocess.run([*command, "build"], capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    assert built.stdout.startswith("native group: ready (")
    told = subprocess.run([*command, "status", "--json"], capture_output=True, text=True, check=False)
    assert '"ready": true' in told.stdout


def test_a_verdict_of_an_easier_self_test_proves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "PROOF", building.PROOF + 1)
    assert "never tested with this MLX" in status(cache).reason
    assert build(cache).is_ready


def test_the_self_test_finds_a_fast_step_whose_bits_are_wrong(cache: Path) -> None:
    code = (
        "import pathlib\nfrom exoengine.native import self_test as test\n"
        "test._Stages.alone = lambda self: self.given\n"
        f"test.run(pathlib.Path({status(cache).file!r}))"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert "does not give what one rank alone computes" in done.stderr
