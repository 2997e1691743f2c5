"""`make native-macos`: what can be proven of the native group on a Mac, from a machine that is none.

    python -m tests.engine.native.macos FOLDER

Fetches MLX's macOS wheel into FOLDER, compiles and links the module for arm64 with `ziglang` against the headers
and the library of that wheel, and checks that every symbol of MLX that the module needs is exported there. It
proves nothing about how it runs.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import lief

from exoengine.native.recipe import FOLDER, MODULE, SOURCES, recipe

OLDEST_MACOS = "14.0"
"""Of MLX's wheels."""

DEADLINE_S = 900.0
"""Minutes on a small machine: zig compiles its own C++ library first."""


def fetch(folder: Path) -> Path:
    """MLX's folder of the wheel, as it would be installed on a Mac."""
    version = metadata.version("mlx")
    out = folder / f"mlx-metal-{version}"
    if not out.is_dir():
        command = (
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--only-binary=:all:", "--platform", "macosx_14_0_arm64", "--python-version", "3.12",
            "--dest", str(folder), f"mlx-metal=={version}",
        )  # fmt: skip
        subprocess.run(command, check=True, timeout=DEADLINE_S)
        (wheel,) = folder.glob(f"mlx_metal-{version}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(out)
        wheel.unlink()
    return out / "mlx"


def build(mlx: Path, out: Path) -> None:
    """Compiles and links. Raises CalledProcessError with the compiler's complaint on standard error."""
    _run(dataclasses.replace(recipe(), mlx=mlx).command(_compiler(), out, target="darwin"), out.parent / "zig")


def compile_only(mlx: Path, out: Path) -> None:
    """The sources of ours to an object file, which shows what they need of MLX. In a minute at the most: linking
    would compile zig's own C++ library first.
    """
    command = dataclasses.replace(recipe(), mlx=mlx).command(_compiler(), out, target="darwin")
    kept = [
        word for word in command if word.startswith(("-I", "-D", "-std", "-f")) or word == str(FOLDER / SOURCES[0])
    ]
    _run([*_compiler(), "-c", *kept, "-o", str(out)], out.parent / "zig")


def _compiler() -> list[str]:
    return [sys.executable, "-m", "ziglang", "c++", "-target", f"aarch64-macos.{OLDEST_MACOS}", "-w"]


def _run(command: list[str], cache: Path) -> None:
    variables = {"ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)}
    subprocess.run(command, check=True, timeout=DEADLINE_S, env={**os.environ, **variables})


def missing(module: Path, library: Path) -> list[str]:
    """Symbols of MLX that the module needs and the library does not export."""
    needed, exported = read(module), read(library)
    has = {str(symbol.name) for symbol in exported.exported_symbols}
    wants = [str(symbol.name) for symbol in needed.imported_symbols if "3mlx4core" in str(symbol.name)]
    if not wants:
        raise AssertionError(f"{module} needs nothing of MLX: that cannot be")
    return [name for name in wants if name not in has]


def read(file: Path) -> lief.MachO.Binary:
    binary = lief.MachO.parse(str(file)).at(0)
    assert binary is not None, file
    return binary


def main() -> int:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    mlx = fetch(folder)
    module = folder / f"{MODULE}.so"
    build(mlx, module)
    lacking = missing(module, mlx / "lib/libmlx.dylib")
    for name in lacking:
        print(f"MLX's macOS library does not export {name}", file=sys.stderr)
    if not lacking:
        print(f"{module}: builds for macOS {OLDEST_MACOS}, and MLX's library exports all that it needs")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
