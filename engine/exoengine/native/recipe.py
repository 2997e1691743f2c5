"""What the native group is built from and how: sources, headers, flags, and the key that all of it makes.

Decides: the compiler's command line on each platform, and when two builds are the same. It runs nothing and imports
no MLX, so the daemon may use it too. Raises `NotBuildableError` where something is not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Final

from exoengine.installed import reinstall_command

SOURCES: Final = ("native_group.cpp", "mesh.h", "reduce.h", "platform.h")
MODULE: Final = "_native_group"
FOLDER: Final = Path(__file__).parent

COMPILE_FLAGS: Final = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-DNDEBUG", "-DNB_DOMAIN=mlx",
)  # fmt: skip
"""`NB_DOMAIN`: the types of MLX's own Python module are shared only within its domain."""

_INTERNALS: Final = re.compile(r"^#\s*define NB_INTERNALS_VERSION (\d+)$", re.MULTILINE)


class NotBuildableError(Exception):
    """`str(error)` says in one line what is missing, `cure` the command that mends it."""

    def __init__(self, text: str, cure: str) -> None:
        super().__init__(text)
        self.cure = cure


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Of this Python, this MLX and these sources."""

    mlx: Path
    """MLX's folder, with `include` and `lib`."""
    nanobind: Path
    nanobind_version: str
    internals: int
    """The version of nanobind's inner structures: MLX's own must be the same."""
    key: str

    @property
    def file_name(self) -> str:
        return MODULE + _suffix()

    def library(self) -> Path:
        """MLX's library."""
        return next(iter(sorted((self.mlx / "lib").glob("libmlx.*"))), self.mlx / "lib" / "libmlx")

    def command(self, compiler: list[str], out: Path, target: str = sys.platform) -> list[str]:
        """Compiles and links in one go."""
        include = sysconfig.get_path("include")
        folders = (
            self.mlx / "include",
            include,
            self.nanobind / "include",
            self.nanobind / "ext/robin_map/include",
        )
        return [
            *compiler, *COMPILE_FLAGS, *(f"-I{folder}" for folder in folders), str(FOLDER / SOURCES[0]),
            str(self.nanobind / "src/nb_combined.cpp"), *_link_flags(self.mlx / "lib", target), "-o", str(out),
        ]  # fmt: skip


def _link_flags(library: Path, target: str) -> list[str]:
    """macOS leaves Python's symbols to the process that loads the module; on Linux that is always so."""
    shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if target == "darwin" else ["-shared"]
    return [*shared, f"-L{library}", "-lmlx", f"-Wl,-rpath,{library}"]


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def recipe() -> Recipe:
    """Raises NotBuildableError."""
    mlx, nanobind = _package("mlx"), _package("nanobind")
    if not (mlx / "include/mlx/distributed/distributed_impl.h").is_file():
        raise NotBuildableError(f"MLX in {mlx} came without its C++ headers", reinstall_command("mlx"))
    header = nanobind / "src/nb_internals.h"
    found = _INTERNALS.search(header.read_text().replace("#  define", "#define")) if header.is_file() else None
    if found is None:
        raise NotBuildableError(f"nanobind in {nanobind} is of a kind that is not known", "make setup")
    versions = (metadata.version("mlx"), metadata.version("nanobind"))
    return Recipe(mlx, nanobind, versions[1], int(found[1]), _key(*versions))


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        if (Path(folder) / "include").is_dir():
            return Path(folder)
    raise NotBuildableError(f"{name} is not installed, or without its headers", reinstall_command(name))


def _key(*versions: str) -> str:
    """The same for builds that may take each other's place."""
    digest = hashlib.sha256("\0".join((*versions, _suffix(), platform.machine(), *COMPILE_FLAGS)).encode())
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:20]


def find_compiler() -> list[str]:
    """The command of a C++ compiler. Raises NotBuildableError where there is none."""
    given = os.environ.get("CXX")
    if given:
        if shutil.which(given) is None:
            raise NotBuildableError(f"CXX={given} names no command", "unset CXX")
        return [given]
    if sys.platform == "darwin":
        # Without the developer tools `/usr/bin/c++` is a stub that opens a window.
        if any(Path(folder).is_dir() for folder in APPLE_TOOLS):
            return ["xcrun", "clang++"]
        raise NotBuildableError(
            "there is no C++ compiler: Apple's command line tools are missing", "xcode-select --install"
        )
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise NotBuildableError("there is no C++ compiler", "sudo apt install g++")


APPLE_TOOLS: Final = ("/Library/Developer/CommandLineTools/usr/bin", "/Applications/Xcode.app/Contents/Developer")
"""Where `xcode-select --install` and Xcode put their compilers."""
