"""`python -m mlx_patches apply|check|revert TREE`: the exit code is 0 fine, 1 refused, 2 usage."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_patches.edits import EDITS, READ
from mlx_patches.patching import State, Survey, TreeRefusedError, apply, revert, survey


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mlx_patches",
        description="Adds the switch MLX_FORCE_DISTRIBUTED_GPU to a source tree of MLX.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, meaning in (
        ("apply", "patch the tree; a patched one stays as it is"),
        ("check", "say whether the tree is patched or can be"),
        ("revert", "restore the files byte for byte"),
    ):
        verbs.add_parser(verb, help=meaning).add_argument("tree", type=Path, metavar="TREE")
    given = parser.parse_args(arguments)
    try:
        print(_run(given.verb, survey(given.tree)))
    except TreeRefusedError as refusal:
        for reason in refusal.reasons:
            print(f"mlx_patches: refused: {reason}", file=sys.stderr)
        return 1
    return 0


def _run(verb: str, tree: Survey) -> str:
    where = f"{tree.root}: MLX {tree.version}"
    if verb == "apply":
        changed = apply(tree)
        done = f"patched, {changed} files changed" if changed else "already patched, nothing to do"
        return f"{where}: {done}{_caution(tree)}"
    if verb == "revert":
        changed = revert(tree)
        return f"{where}: " + (f"restored, {changed} files changed" if changed else "not patched, nothing to do")
    if tree.state is State.HALF:
        raise TreeRefusedError(f"{where}: half patched; apply completes it, revert takes it back")
    edits = sum(tree.version in edit.versions for edit in EDITS)
    fits = f", all {edits} anchors are there" if tree.state is State.UNPATCHED else ""
    return f"{where}: {tree.state.value}{fits}{_caution(tree)}"


def _caution(tree: Survey) -> str:
    if tree.version in READ:
        return ""
    return f" (nobody of exod has built {tree.version} with it: see docs/mlx-patches.md)"


if __name__ == "__main__":
    sys.exit(main())
