"""`make native-macos`: what can be proven of the native group on a Mac, from a machine that is none.

    python -m tests.engine.native.macos FOLDER

Fetches MLX's macOS wheel into FOLDER, compiles and links the module for arm64 with `ziglang` against the headers
and the library of that wheel, and checks that every symbol that the module looks up is there on a Mac. It proves
nothing about how it runs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
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
"""A minute on a small machine; many more where others use it too."""

PYTHONS = re.compile(r"__?Py")
"""Python's own names: the process that imports the module has them."""

CPPS = re.compile(r"__Z(N?K?St|T[IVS]N?S|T[IVS]N10__cxxabiv|dl|da|nw|na|St)|___cxa_|___gxx_personality|__Unwind_")
"""The C++ library's: macOS's own, which MLX's library loads."""

LINKERS = {"dyld_stub_binder", "__tlv_bootstrap"}
"""The loader's."""


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
    """Compiles and links, in a minute at the most. Raises CalledProcessError with the compiler's complaint on
    standard error.

    The flags are the recipe's. Only zig's own copies of what every Mac has are left out, because zig would compile
    them first: its C++ library and its runtime of the compiler. Their symbols are then looked up when the module is
    loaded, as Python's are.
    """
    now = dataclasses.replace(recipe(), mlx=mlx)
    command = now.command(_compiler("c++"), out, target="darwin")
    first = command.index("-dynamiclib")
    given = [word for word in command[:first] if word.startswith(("-I", "-D", "-std", "-f", "-O"))]
    cache, objects = out.parent / "zig", []
    for source in (FOLDER / SOURCES[0], now.nanobind / "src/nb_combined.cpp"):
        made = out.with_name(f"{source.stem}.o")
        _run([*_compiler("c++"), "-c", *given, str(source), "-o", str(made)], cache)
        objects.append(str(made))
    _run([*_compiler("cc"), "-nostdlib", *objects, *command[first:], "-lSystem"], cache)


def _compiler(language: str) -> list[str]:
    return [sys.executable, "-m", "ziglang", language, "-target", f"aarch64-macos.{OLDEST_MACOS}", "-w"]


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


def strangers(module: Path, library: Path) -> list[str]:
    """What the module looks up and nothing is known to bring: neither MLX, nor Python, nor what every Mac has."""
    needed, exported = read(module), read(library)  # lief's lists do not keep alive what they are of
    has = {str(symbol.name) for symbol in exported.exported_symbols} | _of_the_system()
    names = [str(symbol.name) for symbol in needed.imported_symbols]
    return [name for name in names if name not in has and not PYTHONS.match(name) and not CPPS.match(name)]


def _of_the_system() -> set[str]:
    """The symbols of macOS's C library, by the text file that zig links against."""
    folder = importlib.util.find_spec("ziglang")
    assert folder is not None
    assert folder.origin is not None
    text = (Path(folder.origin).parent / "lib/libc/darwin/libSystem.tbd").read_text()
    return set(re.findall(r"[\w$]+", text)) | LINKERS


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
    library = mlx / "lib/libmlx.dylib"
    lacking = [*missing(module, library), *strangers(module, library)]
    for name in dict.fromkeys(lacking):
        print(f"neither MLX's macOS library nor macOS has {name}", file=sys.stderr)
    if not lacking:
        print(f"{module}: builds for macOS {OLDEST_MACOS}, and all that it looks up is there")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
