"""One failing part does not end the daemon: it is started again, and told; an essential one ends it."""

from __future__ import annotations

import asyncio

import pytest

from exod import services
from exod.services import ESSENTIAL, Services

pytestmark = pytest.mark.anyio


async def test_a_part_that_fails_is_started_again_and_told_while_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(services, "PAUSE_FIRST_S", 0.01)
    events: list[tuple[str, dict[str, object]]] = []
    parts = Services(lambda kind, data: events.append((kind, data)))
    runs: list[str] = []

    async def sweeps() -> None:
        runs.append("mqtt")
        if len(runs) < 3:
            raise ValueError("the sweep failed")
        await asyncio.sleep(3600.0)

    async def ends() -> None:
        return None

    async with asyncio.TaskGroup() as tasks:
        jobs = parts.start(tasks, {"mqtt": sweeps, "local network": ends})
        async with asyncio.timeout(20.0):
            # A timer may be a bit early: then it "is started again in 0 s". Nothing else announces it.
            while len(runs) < 3 or "was started again" not in parts.facts()[0].text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert jobs["local network"].done()
        (fact,) = parts.facts()
        assert (fact.code, fact.subject) == ("service_failed", "mqtt")
        assert "failed 2 times lately (ValueError: the sweep failed) and was started again" in fact.text
        assert [kind for kind, _ in events] == ["internal.error"] * 2
        monkeypatch.setattr(services, "SOUND_S", -1.0)
        assert parts.facts() == (), "it has run for long"
        jobs["mqtt"].cancel()


@pytest.mark.parametrize("name", sorted(ESSENTIAL))
async def test_an_essential_part_that_fails_ends_the_daemon(name: str) -> None:
    parts = Services(lambda kind, data: None)

    async def fails() -> None:
        raise ValueError("a bug")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            parts.start(tasks, {name: fails})


def test_the_pause_doubles_up_to_its_limit() -> None:
    parts = Services(lambda kind, data: None)
    pauses = [parts._note("mqtt", ValueError("a bug")) for _ in range(10)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == services.PAUSE_LIMIT_S
