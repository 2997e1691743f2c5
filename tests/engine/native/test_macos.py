"""The native group builds for Apple silicon, loads what it should and finds all that it looks up: no Mac needed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing


@pytest.fixture(scope="module")
def tools() -> Any:
    for package in ("ziglang", "lief"):
        if importlib.util.find_spec(package) is None:
            missing(f"the package {package} is not installed: make setup-cross")
    from tests.engine.native import macos

    return macos


@pytest.fixture(scope="module")
def mlx(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLX's macOS wheel. Some 40 MB, so CI fetches it, and elsewhere what `make native-macos` left is taken."""
    kept = Path("build/native-macos").absolute()
    if os.environ.get("CI") != "true" and not kept.is_dir():
        pytest.skip("MLX's macOS wheel is not here: make native-macos")
    folder: Path = tools.fetch(kept if kept.is_dir() else tmp_path_factory.mktemp("mlx"))
    return folder


@pytest.fixture(scope="module")
def module(tools: Any, mlx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "_native_group.so"
    tools.build(mlx, out)
    return out


def test_it_links_to_an_arm64_macho_for_the_oldest_macos(tools: Any, module: Path) -> None:
    import lief

    found = tools.read(module)
    assert found.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    assert found.header.file_type == lief.MachO.Header.FILE_TYPE.DYLIB
    assert found.build_version.platform == lief.MachO.BuildVersion.PLATFORMS.MACOS
    assert list(found.build_version.minos)[:2] == [int(part) for part in tools.OLDEST_MACOS.split(".")]
    assert any(found.uuid.uuid)
    assert found.has_code_signature, "the kernel of an Apple silicon Mac loads nothing unsigned"


def test_it_loads_mlx_by_its_rpath_and_nothing_but_the_system(tools: Any, mlx: Path, module: Path) -> None:
    found = tools.read(module)
    import lief

    loads = [one for one in found.libraries if one.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB]
    assert {one.name for one in loads} == {"/usr/lib/libSystem.B.dylib", "@rpath/libmlx.dylib"}
    assert found.rpath.path == str(mlx / "lib")
    assert (mlx / "lib/libmlx.dylib").is_file()


def test_it_exports_its_entry_for_python_and_no_symbol_that_could_meet_mlxs(tools: Any, module: Path) -> None:
    found = tools.read(module)
    names = {symbol.name for symbol in found.exported_symbols}
    assert names - {"__mh_dylib_header", "___dso_handle"} == {"_PyInit__native_group"}


def test_all_that_it_looks_up_is_in_mlx_in_python_or_on_every_mac(tools: Any, mlx: Path, module: Path) -> None:
    assert tools.missing(module, mlx / "lib/libmlx.dylib") == []
    assert tools.strangers(module, mlx / "lib/libmlx.dylib") == []


def test_a_symbol_that_the_library_lacks_is_found(tools: Any, mlx: Path, tmp_path: Path) -> None:
    source = tmp_path / "needs.cpp"
    source.write_text(
        'extern "C" void of_nobody();\nnamespace mlx::core { void no_such_thing(); }\n'
        "void need() { mlx::core::no_such_thing(); of_nobody(); }\n"
    )
    out = tmp_path / "needs.o"
    command = [*tools._compiler("c++"), "-c", str(source), "-o", str(out)]
    cache = {name: str(tmp_path / "zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    subprocess.run(command, check=True, timeout=200, env={**os.environ, **cache})
    assert len(tools.missing(out, mlx / "lib/libmlx.dylib")) == 1
    assert "_of_nobody" in tools.strangers(out, mlx / "lib/libmlx.dylib")
