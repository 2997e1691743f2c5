"""A Homebrew formula for an sdist of exod, from the project's metadata.

    python -m launchd.formula dist/exod-0.1.0.tar.gz > exod.rb

The formula makes an environment of its own and installs into it what the constraints in the sdist pin. `brew style`
was not run on it: there is no Homebrew where exod is developed. Ruby's own check and RuboCop with double quotes
accept it; RuboCop alone would have spaces around `/` in paths, which Homebrew's formulae do without.
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

PYTHON = "python@3.13"
"""The newest that Homebrew has and that all dependencies have wheels for on macOS 14."""

FORMULA = """\
class {name} < Formula
  desc "{description}"
  homepage "{url}"
  url "{url}"
  sha256 "{digest}"
  license "{licence}"

  depends_on arch: :arm64
  depends_on macos: :sonoma
  depends_on "{python}"

  def install
    system Formula["{python}"].opt_bin/"{executable}", "-m", "venv", libexec
    system libexec/"bin/pip", "install", "--constraint", buildpath/"constraints.txt", buildpath
    bin.install_symlink libexec/"bin/exod", libexec/"bin/exoctl"
  end

  def caveats
    "Start it with the login: exoctl service install (not brew services: macOS would not know exod.app)"
  end

  test do
    assert_match "{version}", shell_output("#{{bin}}/exod --version")
  end
end
"""

DESCRIPTION_LENGTH = 80
"""Homebrew's limit for `desc`."""


def render(sdist: Path) -> str:
    """Raises ValueError where the file is no sdist."""
    metadata = _metadata(sdist)
    description = metadata["Summary"].split(":")[0].removeprefix("A ")
    return FORMULA.format(
        name=metadata["Name"].capitalize(),
        description=(description[0].upper() + description[1:])[:DESCRIPTION_LENGTH],
        url=sdist.absolute().as_uri(),
        digest=hashlib.sha256(sdist.read_bytes()).hexdigest(),
        licence=metadata["License-Expression"],
        python=PYTHON,
        executable=PYTHON.replace("@", ""),
        version=metadata["Version"],
    )


def _metadata(sdist: Path) -> Message:
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            if member.name.count("/") == 1 and member.name.endswith("/PKG-INFO"):
                content = archive.extractfile(member)
                if content is not None:
                    return Parser().parsestr(content.read().decode())
    raise ValueError(f"{sdist}: has no PKG-INFO: not an sdist")


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m launchd.formula SDIST", file=sys.stderr)
        return 2
    print(render(Path(sys.argv[1])), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
