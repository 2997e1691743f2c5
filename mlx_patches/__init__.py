"""Changes to MLX itself, for those who build it: each with its reason, the versions it fits, and a check.

There is one change: a switch, `MLX_FORCE_DISTRIBUTED_GPU`, that says whether a GPU command buffer may wait
for the network (`docs/mlx-patches.md`). Nothing in exod needs it; the worker uses it where it is there.

| file | what it is |
|---|---|
| `edits.py` | the change as data: files added, and lines put next to an anchor |
| `source/` | the two C++ files that are added, ours throughout |
| `patching.py` | reads a tree, applies the change or takes it back, whole or not at all |
| `__main__.py` | `python -m mlx_patches apply|check|revert TREE` |
| `switch.py` | finds the switch in the MLX of this process; the worker calls it |
| `checks.mk`, `stubs/`, `fake_metal/` | what a machine without Metal can prove about a patched tree |

No source text of MLX is kept here beyond the anchors.
"""
