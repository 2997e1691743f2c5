"""The module that the tests of the native group run with: that of `make setup`, or one built for this session."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from exoengine.native.build import build
from exoengine.native.self_test import load_module


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = build(tmp_path_factory.mktemp("native"))
    if not found.is_ready and "compiler" in found.reason and os.environ.get("CI") != "true":
        pytest.skip(f"the native group cannot be built here: {found.reason}; {found.cure}")
    assert found.is_ready, found.reason
    return Path(found.file)


@pytest.fixture(scope="session")
def native(module: Path) -> Any:
    """The module itself, in this process: it can be loaded into it once."""
    return load_module(module)
