"""The rooms keep to themselves: what the core may import, what the daemon must not, and no work at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DAEMON, ENGINE = ROOT / "daemon" / "exod", ROOT / "engine" / "exoengine"
CORE = DAEMON / "core"

PURE_STDLIB = {
    "__future__",
    "bisect",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "hmac",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "statistics",
    "string",
    "struct",
    "typing",
    "zlib",
}
"""What computes and neither reads a clock, draws a number, nor touches the world."""
CORE_MAY = PURE_STDLIB | {"msgspec"}
SHARED = (
    "exod.core",
    "exod.model",
    "exod.errors",
    "exoengine.framing",
    "exoengine.protocol",
    "exoengine.model_files.memory_fit",
)
"""What the core may know beside itself: values. `exoengine.protocol` is the daemon's half of a conversation."""
OF_THE_ENGINE = (
    "exoengine.decoding",
    "exoengine.framing",
    "exoengine.protocol",
    "exoengine.model_files.memory_fit",
    "exoengine.model_files.model_folder",
    "exoengine.embedded",
    "exoengine.native.build",
    "exoengine.native.recipe",
)
"""What the daemon may import of the engine: none of it imports MLX."""
MLX = ("mlx", "mlx_lm")


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported name with its line, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def is_or_lies_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.parametrize("path", modules(CORE), ids=lambda path: path.name)
def test_the_core_imports_only_what_computes(path: Path) -> None:
    for name, line in imports(path):
        top = name.partition(".")[0]
        known = is_or_lies_in(name, SHARED) or name in ("exod", "exoengine")
        assert top in CORE_MAY or known, f"{where(path, line)}: the core imports {name}"


def test_the_core_reads_no_clock_and_opens_no_file() -> None:
    """What slips past imports: builtins that touch the world."""
    for path in modules(CORE):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"open", "print", "input", "exec", "eval"}, where(path, node.lineno)


def test_the_daemon_never_imports_mlx() -> None:
    for path in modules(DAEMON):
        for name, line in imports(path):
            assert not is_or_lies_in(name, MLX), f"{where(path, line)}: the daemon imports {name}"
            if is_or_lies_in(name, ("exoengine",)):
                allowed = name == "exoengine" or is_or_lies_in(name, OF_THE_ENGINE)
                assert allowed, f"{where(path, line)}: the daemon imports {name}"


def test_what_the_daemon_shares_with_the_engine_is_free_of_mlx() -> None:
    """The script that trains the demo model lies beside it and needs MLX: nothing imports it."""
    for module in OF_THE_ENGINE:
        place = ENGINE / module.partition(".")[2].replace(".", "/")
        for path in [place / "__init__.py"] if place.is_dir() else [place.with_suffix(".py")]:
            for name, line in imports(path):
                assert not is_or_lies_in(name, MLX), f"{where(path, line)}: imports {name}"
                assert "train" not in name, f"{where(path, line)}: imports {name}"


def test_services_do_not_know_the_command_line() -> None:
    for folder in (DAEMON / "services", DAEMON / "platform", CORE):
        for path in modules(folder):
            for name, line in imports(path):
                assert not is_or_lies_in(name, ("exod.cli",)), f"{where(path, line)}: imports {name}"


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import exod.core.node",
        "import exod.__main__",
        "import exod.app",
        "import exod.cli.main",
        *(f"import {module}" for module in OF_THE_ENGINE),
    ],
)
def test_importing_it_loads_no_mlx(statement: str) -> None:
    assert not {name for name in loaded_by(statement) if name.partition(".")[0] in MLX}


def test_the_core_loads_nothing_that_talks_to_the_world() -> None:
    loaded = loaded_by("import sys, msgspec, ipaddress, hmac\nbefore = set(sys.modules)\nimport exod.core.node")
    assert not loaded & {"asyncio", "socket", "ssl", "threading.Thread", "structlog", "zeroconf", "psutil"}


def test_exoctl_loads_only_what_a_status_needs() -> None:
    """`exoctl status` has 200 ms: see `make bench`."""
    loaded = loaded_by("import exod.cli.main")
    assert not loaded & {"uvicorn", "starlette", "zeroconf", "aiomqtt", "amqtt", "cryptography", "huggingface_hub"}


STARTERS = {"run", "sleep", "Thread", "start", "system", "Popen", "connect", "urlopen", "mkdir", "write_text"}


def test_no_module_works_at_import() -> None:
    """Top-level statements define and assign; they do not run, sleep, connect or write."""
    for path in [*modules(DAEMON), *modules(ENGINE)]:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            for inner in ast.walk(node.value):
                if isinstance(inner, ast.Lambda):
                    break
                if isinstance(inner, ast.Call):
                    called = (
                        inner.func.attr if isinstance(inner.func, ast.Attribute) else getattr(inner.func, "id", "")
                    )
                    assert called not in STARTERS, f"{where(path, inner.lineno)}: {called}() at import"
