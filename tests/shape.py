"""The sizes of functions, files and folders of what ships, with the limits of the house: `python -m tests.shape`.

A function's length is from its `def` to its last line, its docstring counted. A folder's modules are counted
without `__init__.py`.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCTION = ("daemon/exod", "engine/exoengine", "mlx_patches", "launchd")

MEDIAN_FUNCTION = 8
P90_FUNCTION = 20
LONGEST_FUNCTION = 60
LONGEST_FILE = 500
MODULES_IN_A_FOLDER = 16


@dataclass(frozen=True)
class Sized:
    size: int
    name: str


@dataclass(frozen=True)
class Shape:
    """Each list is sorted by size."""

    functions: list[Sized]
    files: list[Sized]
    folders: list[Sized]

    @property
    def median(self) -> float:
        return statistics.median(one.size for one in self.functions)

    @property
    def p90(self) -> int:
        return self.functions[int(0.9 * len(self.functions))].size


def measure(root: Path = ROOT, folders: tuple[str, ...] = PRODUCTION) -> Shape:
    found = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    files = [path for path in found if "__pycache__" not in path.parts]
    return Shape(
        functions=_sorted(one for path in files for one in _functions(path, root)),
        files=_sorted(Sized(len(path.read_text().splitlines()), str(path.relative_to(root))) for path in files),
        folders=_sorted(
            Sized(sum(path.parent == folder and path.name != "__init__.py" for path in files), _name(folder, root))
            for folder in {path.parent for path in files}
        ),
    )


def _functions(path: Path, root: Path) -> Iterator[Sized]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield Sized(node.end_lineno - node.lineno + 1, f"{_name(path, root)}:{node.lineno} {node.name}")


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _sorted(sizes: Iterator[Sized]) -> list[Sized]:
    return sorted(sizes, key=lambda one: (one.size, one.name))


def table(shape: Shape) -> str:
    rows = [
        f"functions          {len(shape.functions):>6}",
        f"  median           {shape.median:>6g}   at most {MEDIAN_FUNCTION}",
        f"  90th percentile  {shape.p90:>6}   at most {P90_FUNCTION}",
        *_longest("  longest          ", shape.functions, LONGEST_FUNCTION),
        *_longest("longest file       ", shape.files, LONGEST_FILE),
        *_longest("largest folder     ", shape.folders, MODULES_IN_A_FOLDER),
    ]
    return "\n".join(rows)


def _longest(what: str, sizes: list[Sized], limit: int) -> Iterator[str]:
    yield f"{what}{sizes[-1].size:>6}   at most {limit}   {sizes[-1].name}"


if __name__ == "__main__":
    print(table(measure()))
