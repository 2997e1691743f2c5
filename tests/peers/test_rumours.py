"""What multicast DNS names is dialled with measure until it has proven to be a member."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from exod.peers import control_plane, rumours
from exod.peers.rumours import DIALS_AT_ONCE, REFUSED_RETRY_S, RETRY_LIMIT_S, Rumours
from tests.peers.test_control_plane import A, B, Daemon, until

pytestmark = pytest.mark.anyio

PLACE = ("10.0.0.9", 52410)


def pauses(found: Rumours, count: int) -> list[float]:
    pause, waited = 0.2, []
    for _ in range(count):
        now, pause = found.pause_s(PLACE, pause, 3.0)
        waited.append(now)
    return waited


def test_a_rumour_that_does_not_prove_true_is_dialled_more_and_more_seldom() -> None:
    found = Rumours()
    assert max(pauses(found, 20)) == 3.0, "a configured peer is dialled as before"
    found.add(PLACE)
    assert max(pauses(found, 20)) == RETRY_LIMIT_S
    found.refused(PLACE)
    assert pauses(found, 1) == [REFUSED_RETRY_S]
    found.drop([PLACE])
    assert max(pauses(found, 20)) == 3.0


async def test_few_rumours_are_dialled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = 0, 0

    async def dial(self: object, target: control_plane.Target) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1

    monkeypatch.setattr(control_plane.ControlPlane, "_dial", dial)
    async with Daemon(A).running() as a:
        for number in range(300):
            a.plane.contact(f"10.0.{number // 250}.{number % 250}", 52410, "x", rumour=True)
        await asyncio.sleep(0.1)
        assert most == DIALS_AT_ONCE
        for number in range(40):
            a.plane.contact(f"10.1.0.{number}", 52410, "configured")
        await asyncio.sleep(0.01)
        assert most > DIALS_AT_ONCE, "a person's own entries wait for nobody"


async def test_a_rumour_with_another_key_is_left_alone_and_one_with_ours_is_a_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused: list[object] = []
    monkeypatch.setattr(rumours.Rumours, "refused", lambda self, place: refused.append(place))
    async with Daemon(A).running() as a, Daemon(B).running() as b, Daemon(B, key=b"x" * 32).running() as other:
        a.plane.contact("127.0.0.1", other.port, "other", rumour=True)
        await until(lambda: refused, "it has another key")
        a.plane.contact("127.0.0.1", b.port, "b", rumour=True)
        await until(a.plane.peers, "connected")


async def test_where_the_key_was_refused_nobody_dials_for_minutes() -> None:
    """Four dials would come within this time: after 0.2, 0.6, 1.4 and 3 s."""
    dialled: list[str] = []
    async with Daemon(A).running() as a, Daemon(B, key=b"x" * 32).running() as other:
        dial = a.plane._dial

        async def counted(target: control_plane.Target) -> object:
            dialled.append(target.address)
            return await dial(target)

        a.plane._dial = counted  # type: ignore[assignment, method-assign]
        a.plane.contact("127.0.0.1", other.port, "other", rumour=True)
        await until(lambda: a.plane.strangers(), "it has another key")
        await asyncio.sleep(3.2)
    assert dialled == ["127.0.0.1"]


def test_the_daemon_asks_for_more_descriptors_than_a_shell_gives(tmp_path: Path) -> None:
    code = (
        "import resource; from exod.__main__ import raise_descriptor_limit as more;"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)); more(1000);"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert int(done.stdout) == (1000 if hard == resource.RLIM_INFINITY else min(1000, hard))
