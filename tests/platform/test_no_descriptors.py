"""To ask the system costs a descriptor. Where none is left, the last answer counts, and nothing speaks against."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exod.model import PathEnds
from exod.platform.host_memory import MemoryReader
from exod.platform.routes import path_source
from exod.platform.this_host import current


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing more."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) - 1, usual[1]))
    held: list[int] = []
    try:
        while True:
            try:
                held.append(os.open(Path(__file__), os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def test_the_memory_is_what_it_last_was() -> None:
    reader = MemoryReader()
    before = reader.read()
    with no_descriptors():
        assert reader.read() == before
    assert before.total_bytes >= before.available_bytes > 0


def test_nothing_speaks_against_a_path_that_cannot_be_asked_about() -> None:
    platform, ends = current(), PathEnds("lo", "127.0.0.1", "127.0.0.1")
    with no_descriptors():
        assert path_source(platform, ends) == "127.0.0.1"
