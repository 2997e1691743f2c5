"""The rooms keep to themselves: which may import which, what the core loads, and no work at import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DAEMON, ENGINE = ROOT / "daemon" / "exod", ROOT / "engine" / "exoengine"
CORE = DAEMON / "core"

PURE_STDLIB = {
    "__future__", "bisect", "collections", "contextlib", "dataclasses", "enum", "functools", "hashlib", "heapq",
    "hmac", "ipaddress", "itertools", "json", "math", "operator", "re", "statistics", "string", "struct", "typing",
    "zlib",
}  # fmt: skip
"""What computes and neither reads a clock, draws a number, nor touches the world."""
CORE_MAY = PURE_STDLIB | {"msgspec"}
SHARED = (
    "exod.core",
    "exod.alert_table",
    "exod.model",
    "exod.errors",
    "exod.plain_text",
    "exod.wrong_route",
    "exoengine.framing",
    "exoengine.generation_request",
    "exoengine.protocol",
    "exoengine.model_files.memory_fit",
)
"""What the core may know beside itself: values. `exoengine.protocol` is the daemon's half of a conversation."""
OF_THE_ENGINE = (
    "exoengine.decoding",
    "exoengine.framing",
    "exoengine.generation_request",
    "exoengine.interface_binding",
    "exoengine.protocol",
    "exoengine.model_files.memory_fit",
    "exoengine.model_files.model_folder",
    "exoengine.model_files.wired_memory",
    "exoengine.embedded",
    "exoengine.native.build",
    "exoengine.native.recipe",
    "exoengine.installed",
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


def test_one_file_frames_every_stream() -> None:
    """A length of four bytes before a message is written and read by `framing.py` alone."""
    for path in modules(DAEMON) + modules(ENGINE):
        if path == ENGINE / "framing.py":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.search(
                r"framing\.HEADER_BYTES|int\.from_bytes\(|to_bytes\(4|Struct\(\"[>!]I\"\)", line
            ), where(path, number)


COMMON = (
    "exod",
    "exod.alert_table",
    "exod.errors",
    "exod.log",
    "exod.model",
    "exod.plain_text",
    "exoengine.decoding",
    "exoengine.protocol",
)
"""The floor of the house: values, errors, the table of alerts, the log, and the daemon's half of what is said to a
worker."""

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # the pure core
    "exod.core.base": (),
    "exod.core.probe": ("exod.core.base", "exod.wrong_route"),
    "exod.core.pair": ("exod.core.base", "exod.core.probe", "exod.wrong_route"),
    "exod.core.cluster": ("exod.core.base", "exod.core.probe", "exod.core.pair"),
    "exod.core.engine": ("exod.core.base", "exoengine.model_files"),
    "exod.core.engine.transport": ("exod.core.cluster", "exod.core.engine"),
    "exod.core.engine.rank": (
        "exod.core.base",
        "exod.core.engine",
        "exod.core.engine.transport",
        "exoengine.model_files",
    ),
    "exod.core.membership": (),
    "exod.core.models": (),
    "exod.core.status": (
        "exod.core.base",
        "exod.core.probe",
        "exod.core.pair",
        "exod.core.cluster",
        "exod.core.engine",
        "exoengine.model_files",
    ),
    "exod.core": (
        "exod.core.base",
        "exod.core.probe",
        "exod.core.pair",
        "exod.core.cluster",
        "exod.core.engine",
        "exod.core.engine.rank",
        "exod.core.engine.transport",
        "exod.core.status",
    ),
    # what the shells stand on
    "exod.config": ("exoengine.model_files",),
    "exod.platform": ("exoengine.interface_binding",),
    "exod.wrong_route": (),
    "exod.data_files": (),
    "exod.identity": ("exod.core.base", "exod.data_files"),
    "exod.daemon_api": ("exod.core.cluster",),
    # the shells: none knows another, but for files of models, which are handed over by the control plane's trust
    "exod.network": ("exod.core", "exod.core.base", "exod.core.status", "exod.daemon_api", "exod.platform"),
    "exod.peers": (
        "exod.core.base",
        "exod.core.engine",
        "exod.core.membership",
        "exod.daemon_api",
        "exod.data_files",
        "exod.platform",
        "exoengine.framing",
    ),
    "exod.model_transfer": ("exod.data_files", "exod.peers", "exoengine.framing", "exoengine.interface_binding"),
    "exod.engine_service": (
        "exod.core",
        "exod.core.base",
        "exod.core.engine",
        "exod.core.models",
        "exod.daemon_api",
        "exod.data_files",
        "exod.model_transfer",
        "exod.peers",
        "exod.platform",
        "exoengine.framing",
        "exoengine.model_files",
        "exoengine.native",
    ),
    "exod.diagnostics": (
        "exod.core",
        "exod.core.engine",
        "exod.core.status",
        "exod.daemon_api",
        "exod.platform",
        "exod.wrong_route",
        "exoengine.installed",
        "exoengine.model_files",
    ),
    "exod.mqtt": ("exod.config", "exod.daemon_api"),
    "exod.http": ("exod.config", "exod.daemon_api", "exod.http.dialects"),
    "exod.http.dialects": ("exod.daemon_api",),
    "exod.local_api": ("exod.daemon_api",),
    # what puts them together
    "exod.status": (
        "exod.config",
        "exod.core",
        "exod.core.base",
        "exod.core.cluster",
        "exod.core.engine",
        "exod.core.engine.rank",
        "exod.core.engine.transport",
        "exod.core.membership",
        "exod.core.status",
        "exod.daemon_api",
        "exod.data_files",
        "exod.diagnostics",
        "exod.platform",
    ),
    "exod.propagation": (
        "exod.core",
        "exod.core.base",
        "exod.core.engine",
        "exod.core.status",
        "exod.daemon_api",
        "exod.diagnostics",
        "exod.engine_service",
        "exod.mqtt",
        "exod.peers",
        "exod.status",
    ),
    "exod.membership_file": ("exod.core.membership", "exod.data_files", "exod.peers"),
    "exod.services": ("exod.core.base",),
    "exod.sharing": (
        "exod.config",
        "exod.core.models",
        "exod.core.status",
        "exod.daemon_api",
        "exod.engine_service",
        "exod.model_transfer",
        "exod.peers",
        "exod.platform",
        "exod.status",
    ),
    "exod.shared_wish": ("exod.config", "exod.core.base", "exod.data_files"),
    "exod.own_card": ("exod.config", "exod.identity", "exod.platform", "exoengine.model_files"),
    "exod.first_steps": (),
    "exod.app": (
        "exod.config",
        "exod.core",
        "exod.core.base",
        "exod.core.engine",
        "exod.daemon_api",
        "exod.data_files",
        "exod.diagnostics",
        "exod.engine_service",
        "exod.first_steps",
        "exod.http",
        "exod.identity",
        "exod.local_api",
        "exod.membership_file",
        "exod.sharing",
        "exod.mqtt",
        "exod.network",
        "exod.own_card",
        "exod.peers",
        "exod.platform",
        "exod.propagation",
        "exod.services",
        "exod.shared_wish",
        "exod.status",
    ),
    "exod.__main__": ("exod.app", "exod.config", "exod.platform", "exoengine.installed"),
    # the command line: a program of its own, which knows the daemon by its shapes
    "exod.cli.base": ("exod.config", "exod.local_api", "exod.platform", "exoengine.installed"),
    "exod.cli.screens": ("exod.cli.base", "exod.daemon_api"),
    "exod.cli.service": (),
    "exod.cli.top": ("exod.cli.base", "exod.daemon_api"),
    "exod.cli.report": (),
    "exod.cli.commands": (
        "exod.cli.base",
        "exod.cli.report",
        "exod.cli.screens",
        "exod.cli.service",
        "exod.cli.top",
        "exod.config",
        "exod.daemon_api",
        "exod.diagnostics",
        "exod.engine_service",
        "exod.identity",
        "exod.model_transfer",
        "exod.peers",
        "exod.platform",
        "exoengine.embedded",
        "exoengine.model_files",
        "exoengine.native",
    ),
    "exod.cli": ("exod.platform", "exod.cli.base", "exod.cli.commands"),
    # the engine
    "exoengine.protocol": (
        *("exoengine.cost_figures", "exoengine.framing", "exoengine.generation_request"),
        "exoengine.ring_addresses",
    ),
    "exoengine.ring_addresses": (),
    "exoengine.cost_figures": (),
    "exoengine.generation_request": (),
    "exoengine.framing": (),
    "exoengine.decoding": (),
    "exoengine.interface_binding": (),
    "exoengine.embedded": (),
    "exoengine.typed_text": (),
    "exoengine.installed": (),
    "exoengine.native": ("exoengine.installed",),
    "exoengine.model_files": ("exoengine.embedded",),
    "exoengine.model": ("exoengine.model_files", "exoengine.typed_text"),
    "exoengine.ring": ("exoengine.framing", "exoengine.interface_binding", "exoengine.native"),
    "exoengine.process": (),
    "exoengine.measure": ("exoengine.model",),
    "exoengine.generate": ("exoengine.model", "exoengine.model_files", "exoengine.process", "exoengine.ring"),
    "exoengine.worker": (
        "exoengine.generate",
        "exoengine.measure",
        "exoengine.model",
        "exoengine.model_files",
        "exoengine.native",
        "exoengine.process",
        "exoengine.ring",
    ),
}
"""Which room may import which, beside COMMON. A room is a folder, or a module that stands alone at the root."""


def all_modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name; a package stands for its `__init__`."""
    found = {}
    for folder in (DAEMON, ENGINE):
        for path in modules(folder):
            name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def room_of(name: str, known: dict[str, Path]) -> str:
    if known[name].name == "__init__.py" or name.count(".") == 1:
        return name
    return name.rpartition(".")[0]


def imported_by(name: str, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """The modules of this house that a module imports: anywhere in it, lazily or for its types too."""
    for wanted, line in imports(known[name]):
        if wanted in known and wanted != name:
            yield wanted, line


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Names that reach themselves."""
    reached = {name: set(direct) for name, direct in arrows.items()}
    changed = True
    while changed:
        changed = False
        for name, found in reached.items():
            more = set().union(*(reached.get(one, set()) for one in found)) - found
            if more:
                reached[name] |= more
                changed = True
    return sorted(name for name, found in reached.items() if name in found)


def allowed_in(room: str) -> tuple[str, ...]:
    """The engine knows nothing of the daemon, not even its floor."""
    allowed = (room, *COMMON, *MAY_IMPORT.get(room, ()))
    return tuple(one for one in allowed if is_or_lies_in(one, ("exoengine",)) or not room.startswith("exoengine"))


def test_each_room_imports_only_what_it_may() -> None:
    known = all_modules()
    for name in known:
        room = room_of(name, known)
        allowed = allowed_in(room)
        for wanted, line in imported_by(name, known):
            way_there = any(one.startswith(f"{wanted}.") for one in allowed) and is_empty(known[wanted])
            fine = room_of(wanted, known) in allowed or way_there
            assert fine, f"{where(known[name], line)}: {room} imports {wanted}"


def is_empty(path: Path) -> bool:
    """A package that is only the way to its modules."""
    return path.name == "__init__.py" and not ast.parse(path.read_text()).body[1:]


def test_the_table_names_every_room_and_no_other() -> None:
    known = all_modules()
    rooms = {room_of(name, known) for name, path in known.items() if not is_empty(path)} - set(COMMON)
    assert rooms == MAY_IMPORT.keys() - set(COMMON)
    assert {one for allowed in MAY_IMPORT.values() for one in allowed} - set(COMMON) <= rooms


def test_there_is_no_circle_of_rooms_nor_of_modules() -> None:
    assert circles({room: set(allowed) for room, allowed in MAY_IMPORT.items()}) == []
    known = all_modules()
    arrows = {name: {wanted for wanted, _ in imported_by(name, known)} for name in known}
    packages = {name for name, path in known.items() if is_empty(path)}
    assert circles({name: wanted - packages for name, wanted in arrows.items()}) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


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


WORLD = {
    "asyncio",
    "socket",
    "ssl",
    "threading",
    "subprocess",
    "random",
    "time",
    "selectors",
    "structlog",
    "psutil",
}
"""What a pure core never loads, by itself or through what it imports."""

CORE_PACKAGES = sorted(".".join(path.parent.relative_to(DAEMON.parent).parts) for path in CORE.rglob("__init__.py"))


@pytest.mark.parametrize("package", CORE_PACKAGES)
def test_a_package_of_the_core_loads_nothing_that_talks_to_the_world(package: str) -> None:
    """All its modules in a fresh interpreter, which has loaded `time` for itself."""
    known = all_modules()
    wanted = sorted(name for name in known if name == package or name.startswith(f"{package}."))
    assert len(wanted) > 1
    loaded = loaded_by(f"import {', '.join(wanted)}") - loaded_by("pass")
    assert set(wanted) <= loaded
    assert not loaded & WORLD


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
