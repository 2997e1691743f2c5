"""The supervisor. No MLX is ever imported here: ranks are processes of their own (`exoengine`)."""

from typing import Final

VERSION: Final = "0.1.0"
"""The same as in pyproject.toml (a test compares them): reading package metadata would slow every start."""
