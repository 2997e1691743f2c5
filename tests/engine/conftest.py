"""What tests share: workers, each started once, into which each test loads its own model; and the native group's
module, that of `make setup` or one built for this session.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exoengine.native.build import build
from exoengine.native.self_test import load_module
from tests.engine.driver import Cluster, cluster
from tests.engine.models import LLAMA, QWEN2, write_model


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three ranks, for tests that leave their processes as they were."""
    with cluster(tmp_path_factory.mktemp("trio"), 3) as made:
        yield made


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", LLAMA)


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "qwen2", QWEN2)


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
