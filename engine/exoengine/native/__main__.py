"""`python -m exoengine.native [status|build] --cache FOLDER [--again]`: what `make setup` calls.

Says what there is and what mends it; exit code 0 where the module can be used, else 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from exoengine.native.build import build, lines, status


def main() -> None:
    parser = argparse.ArgumentParser(prog="exoengine.native")
    parser.add_argument("verb", choices=("status", "build"), nargs="?", default="status")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--again", action="store_true", help="build it even where it is ready")
    arguments = parser.parse_args()
    again, cache = arguments.again, arguments.cache
    found = build(cache, again) if arguments.verb == "build" else status(cache)
    print("\n".join(lines(found)))
    sys.exit(0 if found.is_ready else 1)


if __name__ == "__main__":
    main()
