"""Several workers of one test run: which files run beside which, and which have the machine to themselves."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest

RANKS, BESIDE, ALSO_BESIDE, ALONE = (
    f"tests/{file}.py::test" for file in ("engine/ring/test_a", "core/test_b", "engine/native/test_c", "lab/test_d")
)
COLLECTED = [ALONE, BESIDE, RANKS, ALSO_BESIDE]


class Worker:
    """What a scheduler sees of one."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.shutting_down = False
        self.gateway = SimpleNamespace(id="worker")

    def send_runtest_some(self, indices: list[int]) -> None:
        self.given += [COLLECTED[index] for index in indices]

    def shutdown(self) -> None:
        self.shutting_down = True


def scheduled(workers: int) -> list[Worker]:
    """Each worker, when every test that it was given is done."""
    config: Any = SimpleNamespace(
        getvalue=lambda _: ["popen"] * workers, option=SimpleNamespace(loadscopereorder=False)
    )
    scheduler, made = conftest.pytest_xdist_make_scheduler(config, None), [Worker() for _ in range(workers)]
    for worker in made:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, COLLECTED)
    scheduler.schedule()
    done: set[str] = set()
    while ready := [(one, test) for one in made for test in one.given if test not in done]:
        worker, test = ready[0]
        done.add(test)
        scheduler.mark_test_complete(worker, COLLECTED.index(test))
    assert done == {*COLLECTED}
    assert scheduler.tests_finished
    return made


def test_one_worker_has_the_ranks_and_last_what_runs_alone() -> None:
    one, other = scheduled(2)
    assert (one.given[0], one.given[-1]) == (RANKS, ALONE)
    assert other.given
    assert {*other.given} <= {BESIDE, ALSO_BESIDE}
    assert other.shutting_down


def test_a_worker_without_others_runs_everything() -> None:
    (one,) = scheduled(1)
    assert one.given == [RANKS, BESIDE, ALSO_BESIDE, ALONE]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Another worker's hold on the turn, instead of that of the run which this test is part of."""
    file = tmp_path / "turn"
    file.touch()
    with file.open() as mine, file.open() as others:
        monkeypatch.setattr(conftest, "TURN", mine.fileno())
        yield others


@pytest.mark.parametrize(("test", "is_alone"), [(ALONE, True), (BESIDE, False), (RANKS, False)])
def test_nothing_runs_beside_what_runs_alone(test: str, is_alone: bool, elsewhere: Any) -> None:
    item: Any = SimpleNamespace(config=SimpleNamespace(workerinput={}), nodeid=test, path=Path(test))
    turn = conftest.pytest_runtest_protocol(item, None)
    next(turn)
    if is_alone:
        with pytest.raises(BlockingIOError):
            fcntl.flock(elsewhere, fcntl.LOCK_SH | fcntl.LOCK_NB)
    else:
        fcntl.flock(elsewhere, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with pytest.raises(StopIteration):
        next(turn)
    fcntl.flock(elsewhere, fcntl.LOCK_EX | fcntl.LOCK_NB)
