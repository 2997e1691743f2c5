"""An edge that swallows large frames is found without anybody asking, and forgiven when it carries them again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from exod.daemon_api.shapes import PreflightCheck
from exod.diagnostics import frame_size_check as module
from exod.diagnostics.frame_size_check import EdgeWatch

GOOD = PreflightCheck("transfer", "a -> b", True, "9 MB/s", "it passed")
BAD = PreflightCheck("transfer", "a -> b", False, "timed out", "large frames do not pass", "look at the MTU")
WITHIN_S = 10.0


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.01)
    monkeypatch.setattr(module, "AGAIN_S", 0.01)


def told(answers: list[PreflightCheck], until: Callable[[EdgeWatch, list[bool]], bool]) -> list[bool]:
    """What is told after one plan while checks give `answers`, the last of them for ever: does something fail?"""

    async def live() -> list[bool]:
        said: list[bool] = []

        async def check() -> tuple[PreflightCheck, ...]:
            return (answers.pop(0) if len(answers) > 1 else answers[0],)

        watch = EdgeWatch(check, lambda failed: said.append(bool(failed)))
        watch.plan_committed()
        job = asyncio.create_task(watch.run())
        async with asyncio.timeout(WITHIN_S):
            while not until(watch, said):  # noqa: ASYNC110 - what is waited for is the test's own
                await asyncio.sleep(0.01)
        job.cancel()
        return said

    return asyncio.run(live())


def test_two_failures_in_a_row_are_told() -> None:
    assert told([BAD], lambda watch, said: watch.failed == (BAD,)) == [True]


def test_one_failure_is_not() -> None:
    answers = [BAD, GOOD]
    assert told(answers, lambda watch, said: len(answers) == 1) == []


def test_an_edge_that_carries_again_is_forgiven() -> None:
    assert told([BAD, BAD, BAD, GOOD], lambda watch, said: len(said) == 2) == [True, False]


def test_another_plan_voids_what_was_found() -> None:
    def replace(watch: EdgeWatch, said: list[bool]) -> bool:
        if said == [True]:
            watch.plan_committed()
        return len(said) >= 2

    assert told([BAD], replace)[:2] == [True, False]
