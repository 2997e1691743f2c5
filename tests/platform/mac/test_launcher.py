"""exod.app's launcher: its source run for real here, its prebuilt Mach-O read by a parser and built again."""

from __future__ import annotations

import importlib.util
import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from exod.cli.service.host import shared_library
from launchd import app
from launchd.app.build import build
from tests.cli.test_service_files import by_plistutil
from tests.conftest import missing

EX_CONFIG = 78


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher, compiled for this host."""
    compiler = shutil.which("cc")
    if compiler is None:
        missing("no C compiler (cc) is installed")
    program = tmp_path_factory.mktemp("launcher") / "exod"
    argv = [str(compiler), "-O1", "-Wall", "-Wextra", "-Werror", "-std=c11", "-D_GNU_SOURCE", "-D_DARWIN_C_SOURCE"]
    subprocess.run([*argv, "-o", str(program), str(app.source()), "-ldl"], check=True, timeout=120)
    return program


def conf(home: Path) -> Path:
    return Path(app.settings_path(PurePosixPath(home)))


def write_conf(home: Path, text: str) -> Path:
    conf(home).parent.mkdir(parents=True)
    conf(home).write_text(text)
    conf(home).chmod(0o644)
    return conf(home)


def run(launcher: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    argv = [str(launcher), *arguments]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=120)


def good_settings() -> str:
    library = shared_library()
    if library is None:
        missing("this Python has no shared library")
        raise AssertionError
    return app.settings(PurePosixPath(library), PurePosixPath(sys.executable), "x")


def test_it_runs_exod_of_the_environment_that_the_settings_name(launcher: Path, tmp_path: Path) -> None:
    write_conf(tmp_path, good_settings())
    done = run(launcher, tmp_path, "run", "--config", "/no/such/exod.toml")
    assert done.stderr == "exod: /no/such/exod.toml: there is no such file; name another with --config\n"
    assert done.returncode == 2


def test_python_runs_in_the_launchers_own_process_and_in_its_environment(launcher: Path, tmp_path: Path) -> None:
    """No exec: the process stays the program that macOS knows. Children are started by the environment's Python."""
    write_conf(tmp_path, good_settings())
    site = tmp_path / "site"
    (site / "exod").mkdir(parents=True)
    (site / "exod" / "__init__.py").write_text("")
    telling = (
        "import os, sys; print(os.readlink('/proc/self/exe')); print(sys.executable, sys.prefix, sys.argv[1:])"
    )
    (site / "exod" / "__main__.py").write_text(telling)
    if not Path("/proc/self/exe").exists():
        pytest.skip("needs Linux's /proc")
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    done = subprocess.run(
        [str(launcher), "run", "ü"], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == [str(launcher), f"{sys.executable} {sys.prefix} ['run', 'ü']"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no library or no python"),
        ("library=relative.so\npython=/x\n", "not an absolute path: library=relative.so"),
        ("library=/no/such.so\npython=/x\n", "cannot use the Python library"),
        (f"library=/{'x' * 5000}\n", "not an absolute path"),
    ],
    ids=["empty", "relative", "no library", "long"],
)
def test_settings_that_are_no_use_are_one_line_with_the_cure(
    launcher: Path, tmp_path: Path, text: str, words: str
) -> None:
    write_conf(tmp_path, text)
    done = run(launcher, tmp_path, "run")
    assert done.returncode == EX_CONFIG
    assert words in done.stderr
    assert done.stderr.endswith("exoctl service install\n")
    assert done.stderr.count("\n") == 1


def test_an_environment_that_is_gone_is_named(launcher: Path, tmp_path: Path) -> None:
    write_conf(tmp_path, good_settings().replace(sys.executable, "/no/such/python3"))
    done = run(launcher, tmp_path, "run")
    assert done.returncode == EX_CONFIG
    assert "/no/such/python3" in done.stderr
    assert "is gone" in done.stderr


def test_settings_that_others_may_write_are_not_obeyed(launcher: Path, tmp_path: Path) -> None:
    write_conf(tmp_path, good_settings()).chmod(0o666)
    done = run(launcher, tmp_path, "run")
    assert done.returncode == EX_CONFIG
    assert "can be written by others" in done.stderr


def test_without_settings_or_arguments_it_says_what_to_do(launcher: Path, tmp_path: Path) -> None:
    assert "No such file" in run(launcher, tmp_path, "run").stderr
    assert "exoctl service status" in run(launcher, tmp_path).stderr


# --- the prebuilt one ----------------------------------------------------------------------------------------


def parsed() -> Any:
    if importlib.util.find_spec("lief") is None:
        missing("the package lief is not installed: make setup-cross")
    import lief

    return lief.MachO.parse(list(app.prebuilt()))[0]


def test_the_prebuilt_launcher_is_built_again_to_the_same_bytes(tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        missing("the package ziglang is not installed: make setup-cross")
    build(tmp_path / "first")
    build(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert (tmp_path / "first").read_bytes() == app.prebuilt(), "launcher.c has changed: make launcher"


def test_the_prebuilt_launcher_is_a_program_for_apple_silicon() -> None:
    program = parsed()
    import lief

    assert program.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    assert program.header.file_type == lief.MachO.Header.FILE_TYPE.EXECUTE
    assert program.is_pie
    assert program.build_version.platform == lief.MachO.BuildVersion.PLATFORMS.MACOS
    assert list(program.build_version.minos)[:2] == [int(part) for part in app.OLDEST_MACOS.split(".")]
    assert any(program.uuid.uuid), "macOS knows a program by its LC_UUID"
    assert program.has_code_signature, "the kernel of an Apple silicon Mac runs nothing unsigned"


def test_the_prebuilt_launcher_loads_libpython_and_starts_nothing() -> None:
    program = parsed()
    imported = {symbol.name for symbol in program.imported_symbols}
    assert {"_dlopen", "_dlsym"} <= imported
    assert not {
        name for name in imported if "exec" in name or "spawn" in name or "fork" in name or "system" in name
    }
    assert [library.name for library in program.libraries] == ["/usr/lib/libSystem.B.dylib"]
    assert not program.has_rpath


def test_the_prebuilt_launcher_is_small_and_holds_no_path_of_its_builder() -> None:
    binary = app.prebuilt()
    assert len(binary) < 100_000
    assert b"/tmp" not in binary
    assert b"/home" not in binary
    assert b"/root" not in binary
    assert str(app.settings_path(PurePosixPath("/"))).encode() in binary


def test_two_readers_read_the_bundles_property_list(tmp_path: Path) -> None:
    info = plistlib.loads(app.info_plist())
    assert by_plistutil(app.info_plist().decode(), tmp_path) == info
    assert info["CFBundleIdentifier"] == app.IDENTIFIER
    assert info["CFBundleExecutable"] == app.EXECUTABLE
    assert info["LSUIElement"] is True
    assert info["NSBonjourServices"] == ["_exod._tcp"]
    assert "cluster" in info["NSLocalNetworkUsageDescription"]


def test_the_launchers_source_stays_small() -> None:
    assert len(app.source().read_text().splitlines()) < 200


def test_a_path_that_no_line_can_carry_is_refused() -> None:
    for path in ("/Users/me\npython=/bin/evil", "relative/libpython.dylib"):
        with pytest.raises(ValueError, match="no absolute path"):
            app.settings(PurePosixPath(path), PurePosixPath("/x"), "")
