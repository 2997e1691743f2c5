"""When the core is told that links matter, and that they do not."""

from __future__ import annotations

import asyncio

import pytest

from exod.core.base.events import ActivityChanged
from exod.network import link_pace
from exod.network.link_pace import LinkPace

pytestmark = pytest.mark.anyio


async def test_quiet_is_told_after_a_while_and_the_end_of_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_pace, "QUIET_AFTER_S", 0.1)
    idle, told = True, list[ActivityChanged]()
    pace = LinkPace(lambda: idle, told.append)
    for _ in range(3):
        pace.look()
    assert told == []
    async with asyncio.timeout(20):
        while not told:  # noqa: ASYNC110 - a plain list
            await asyncio.sleep(0.01)
    assert told == [ActivityChanged(busy=False)]
    idle = False
    pace.look()
    pace.look()
    assert told == [ActivityChanged(busy=False), ActivityChanged(busy=True)]
    idle = True
    pace.look()
    idle = False
    pace.look()  # busy again before the while was over
    await asyncio.sleep(0.3)
    assert len(told) == 2
    pace.close()
