"""What this Python environment lacks of the packages that exod needs, and the command that brings them.

    python -m exoengine.installed        one line for each, and exit code 1; nothing where all is there

It compares the packages' own metadata, as `pip check` does, and imports none of them: a package that is there and
cannot be imported fails where it is imported. Decides the command, for environments with pip and without (uv
makes those). Raises nothing for what is missing.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from importlib import metadata
from typing import Final, NamedTuple

ROOT: Final = "exod"


class Lack(NamedTuple):
    requirement: str
    """As an installer takes it: `llguidance>=1.9.1`."""
    text: str


def lacking(root: str = ROOT) -> list[Lack]:
    """What `root` needs and has not, in the order of its requirements. Empty where `root` itself was never
    installed, as when its sources are run from a folder.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [Lack("packaging", "packaging is not installed")]
    found: list[Lack] = []
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset())]
    while waiting:
        one = waiting.pop(0)
        if one in seen:
            continue
        seen.add(one)
        needing, extras = one
        for line in _requirements(needing):
            needed = Requirement(line)
            if needed.marker and not any(needed.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                continue
            version = _version(needed.name)
            plain = f"{needed.name}{needed.specifier}"
            if not version:
                found.append(Lack(plain, f"{needed.name} is not installed, and {needing} needs it"))
            elif needing == root and not needed.specifier.contains(version, prereleases=True):
                found.append(Lack(plain, f"{needed.name} is {version}, and {needing} needs {needed.specifier}"))
            else:
                waiting.append((needed.name, frozenset(needed.extras)))
    return found


def _requirements(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str:
    """Empty where it is not installed. A folder that an uninstall left half behind has no version either."""
    try:
        return metadata.version(name) or ""
    except (metadata.PackageNotFoundError, KeyError, TypeError):
        return ""


def why_not_imported(error: ImportError) -> str:
    """One line for people, with the command that mends it."""
    missing = [one.requirement for one in lacking()]
    if missing:
        return f"{error}; exod's environment is not whole: {install_command(missing)}"
    return f"{error}; a package of exod's environment is broken: install exod again"


def install_command(requirements: list[str]) -> str:
    """Brings what is missing; for the environment that runs this."""
    python, what = shlex.quote(sys.executable), shlex.join(dict.fromkeys(requirements))
    if _has_pip():
        return f"{python} -m pip install {what}"
    return f"uv pip install --python {python} {what}"


def reinstall_command(name: str) -> str:
    """Brings a package's files again, of the same version, and touches no other."""
    python, version = shlex.quote(sys.executable), _version(name)
    what = f"{name}=={version}" if version else name
    if _has_pip():
        return f"{python} -m pip install --force-reinstall --no-deps {what}"
    return f"uv pip install --python {python} --reinstall-package {name} {what}"


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def main() -> int:
    found = lacking()
    for one in found:
        print(one.text, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
