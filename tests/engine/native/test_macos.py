"""The native group compiles for Apple silicon, and MLX's macOS library has all that it needs: no Mac needed."""

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
def compiled(tools: Any, mlx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "native_group.o"
    tools.compile_only(mlx, out)
    return out


def test_it_compiles_to_an_arm64_macho_for_the_oldest_macos(tools: Any, compiled: Path) -> None:
    import lief

    found = tools.read(compiled)
    assert found.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    assert found.build_version.platform == lief.MachO.BuildVersion.PLATFORMS.MACOS
    assert list(found.build_version.minos)[:2] == [int(part) for part in tools.OLDEST_MACOS.split(".")]


def test_mlxs_macos_library_exports_what_it_needs(tools: Any, mlx: Path, compiled: Path) -> None:
    assert tools.missing(compiled, mlx / "lib/libmlx.dylib") == []


def test_a_symbol_that_the_library_lacks_is_found(tools: Any, mlx: Path, tmp_path: Path) -> None:
    source = tmp_path / "needs.cpp"
    source.write_text(
        "namespace mlx::core { void no_such_thing(); }\nvoid need() { mlx::core::no_such_thing(); }\n"
    )
    out = tmp_path / "needs.o"
    command = [*tools._compiler(), "-c", str(source), "-o", str(out)]
    cache = {name: str(tmp_path / "zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    subprocess.run(command, check=True, timeout=200, env={**os.environ, **cache})
    assert len(tools.missing(out, mlx / "lib/libmlx.dylib")) == 1
