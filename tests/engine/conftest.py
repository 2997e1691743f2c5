"""Workers that tests share: a process is started once, and each test loads its own model into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
