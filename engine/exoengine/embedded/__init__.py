"""The models that ship in the package, and where they lie.

`embedded:count` is a Llama of 8 layers that answers `count from 3 to 60` with exactly those numbers, so
that people who watch a cable being pulled can see that nothing is lost. It is a model folder like any
other: `train_count` made it, and the engine loads it as it loads a folder that a user names.

This module only finds folders. It imports nothing heavy, since a status line may ask too.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

PREFIX = "embedded:"
MODELS = ("embedded:count",)


def is_embedded(name: str) -> bool:
    """Whether `name` claims to be an embedded model, known or not: `embedded:…`."""
    return name.startswith(PREFIX)


def model_folder(name: str) -> Path:
    """Where the embedded model `name`, for example `embedded:count`, lies on this machine.

    Raises ValueError, naming what is allowed, for any other name.
    """
    if name not in MODELS:
        raise ValueError(f"there is no embedded model {name!r}; allowed: {', '.join(MODELS)}")
    return Path(str(files(__name__).joinpath(name.removeprefix(PREFIX))))
