"""`exoctl events` and `exoctl wait`, completion beside them."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from exod.daemon_api.shapes import (
    Readiness,
)
from exod.errors import ExitCode
from exod.model import Event
from tests.cli.running import DEADLINE_S, Exoctl, served
from tests.sample_reports import CABLE, HERE, PEER, STARTED_AT, alone_status, peer_gone_status

pytestmark = pytest.mark.anyio


@pytest.fixture
def exoctl(tmp_path: Path) -> Exoctl:
    return Exoctl(tmp_path)


async def test_events_are_lines_for_people_or_json(exoctl: Exoctl) -> None:
    async with served(exoctl):
        people = await exoctl.run("events")
        machines = await exoctl.run("events", "--json", "--since", str(STARTED_AT))
        nothing = await exoctl.run("events", "--since", "1h")
    assert people.out.splitlines()[1].endswith("link.selected     studio2  from en0, to bridge0, reason held")
    assert people.out.startswith("2025-06-15 15:06:40.000")
    (event,) = map(json.loads, machines.out.splitlines())
    assert (event["type"], event["from"], event["to"]) == ("link.selected", "en0", "bridge0")
    assert (nothing.code, nothing.out) == (0, "")


@pytest.mark.parametrize("since", ["1e400", "-inf", "nan", "yesterday", "", "2d2h", "9" * 400, "0001-01-01T00:00"])
async def test_what_is_no_time_is_refused(exoctl: Exoctl, since: str) -> None:
    async with served(exoctl):
        ended = await exoctl.run("events", f"--since={since}")
    assert (ended.code, ended.out, ended.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert "is no time" in ended.err


async def test_events_for_people_name_nodes_once_and_leave_out_what_is_empty(exoctl: Exoctl) -> None:
    path = {"peer": PEER, "peer_name": "studio2", "interface": "bridge0", "detect_ms": None, "rtt_ms": 0.3124}
    plan = {"epoch": 2, "agree_ms": 3.1, "members": [HERE, PEER], "ring": []}
    async with served(exoctl) as daemon:
        daemon.log = [
            Event(STARTED_AT, "node.up", PEER, {"name": "studio2", "reason": "heard"}),
            Event(STARTED_AT, "path.up", CABLE, path),
            Event(STARTED_AT, "mesh.agreed", "3fa9c1d2", plan),
        ]
        node, cable, mesh = (await exoctl.run("events")).out.splitlines()
    assert node.endswith("  studio2  reason heard")
    assert cable.endswith("  10.0.0.1-10.0.0.2  peer studio2, interface bridge0, rtt_ms 0.31")
    assert mesh.endswith("  epoch 2, agree_ms 3.10, members studio1 studio2")


async def test_events_are_picked_by_type_and_node(exoctl: Exoctl) -> None:
    async with served(exoctl):
        links = await exoctl.run("events", "--type", "link.*")
        peer = await exoctl.run("events", "--node", "studio2", "--json")
        none = await exoctl.run("events", "--type", "engine.*")
        nobody = await exoctl.run("events", "--node", "studio9")
    assert [line.split()[2] for line in links.out.splitlines()] == ["link.selected"]
    assert len(peer.out.splitlines()) == 2
    assert (none.code, none.out) == (0, "")
    assert nobody.code == 2
    assert "studio1, studio2" in nobody.err


async def test_events_are_read_from_the_disk_where_no_daemon_runs(exoctl: Exoctl) -> None:
    event = {"ts": STARTED_AT, "type": "crash.seen", "subject": "worker", "data": {"signal": "SIGKILL"}}
    (exoctl.folder / "events.ndjson").write_text(json.dumps(event) + "\n" + "{torn")
    ended = await exoctl.run("events", "--json")
    assert ended.code == 0
    assert json.loads(ended.out) == {
        "schema": 1,
        **event["data"],
        "ts": STARTED_AT,
        "type": "crash.seen",
        "subject": "worker",
    }
    assert "no exod is running here; 1 events" in ended.err
    assert (await exoctl.run("events", "--follow")).code == 3


async def test_events_on_the_disk_name_nodes_as_far_as_they_name_themselves(exoctl: Exoctl) -> None:
    up = {"ts": STARTED_AT, "type": "node.up", "subject": PEER, "data": {"name": "studio2"}}
    loaded = {"ts": STARTED_AT + 1, "type": "engine.loaded", "subject": PEER, "data": {"load_s": 1.0}}
    (exoctl.folder / "events.ndjson").write_text("".join(json.dumps(one) + "\n" for one in (up, loaded)))
    told = await exoctl.run("events")
    assert [line.split()[3] for line in told.out.splitlines()] == ["studio2", "studio2"]
    assert len((await exoctl.run("events", "--node", "studio2")).out.splitlines()) == 2
    nobody = await exoctl.run("events", "--node", "studio9")
    assert (nobody.code, "studio2" in nobody.err) == (2, True)


async def test_a_shell_completes_commands(exoctl: Exoctl) -> None:
    ended = await exoctl.run("completion", "bash", bare=True)
    assert ended.code == 0
    script = exoctl.folder / "completion.sh"
    script.write_text(ended.out + "\nCOMP_WORDS=(exoctl sta); COMP_CWORD=1; _shtab_exoctl; echo ${COMPREPLY[@]}\n")
    process = await asyncio.create_subprocess_exec("bash", str(script), stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.split() == [b"status"]
    assert (await exoctl.run("completion", "fish", bare=True)).code == 2


async def test_events_follow_until_interrupted(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        process = await exoctl.start("events", "--follow", "--json")
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            await process.stdout.readline()
            await process.stdout.readline()
            await daemon.add_event(Event(STARTED_AT + 9, "node.down", "studio2", {"reason": "silent"}))
            assert json.loads(await process.stdout.readline())["reason"] == "silent"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0


async def test_a_reader_that_has_seen_enough_ends_it_quietly(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        daemon.log = [Event(STARTED_AT + at, "node.up", "studio2", {}) for at in range(20_000)]
        process = await exoctl.start("events", "--json")
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            await process.stdout.readline()
            process.stdout._transport.close()  # type: ignore[attr-defined]
            assert await process.wait() == 0
            assert await process.stderr.read() == b""


async def test_wait_returns_at_once_where_it_is_so_already(exoctl: Exoctl) -> None:
    async with served(exoctl):
        for gate in ("agreed", "ready", "healthy"):
            ended = await exoctl.run("wait", "--for", gate)
            assert (ended.code, ended.out) == (0, f"{gate}\n")


async def test_wait_says_what_is_still_missing_when_it_gives_up(exoctl: Exoctl) -> None:
    async with served(exoctl, alone_status()) as daemon:
        daemon.ready_now = Readiness(False, "model_loading", "embedded:count is loading")
        ready = await exoctl.run("wait", "--timeout", "0.1")
        agreed = await exoctl.run("wait", "--for", "agreed", "--timeout", "0.1")
    assert ready.code == agreed.code == ExitCode.TIMED_OUT
    assert ready.err == "exoctl: not ready after 0.1 s: embedded:count is loading\n"
    assert "this node is alone: no other was found" in agreed.err
    async with served(exoctl, peer_gone_status(left=False)) as daemon:
        down = await exoctl.run("wait", "--for", "agreed", "--timeout", "0.1")
        daemon.status_now = peer_gone_status(left=True)
        left = await exoctl.run("wait", "--for", "agreed", "--timeout", "0.1")
    assert "this node is alone: studio2 is down" in down.err
    assert "this node is alone: studio2 has left" in left.err


async def test_wait_goes_on_until_the_daemon_is_there_and_ready(exoctl: Exoctl) -> None:
    process = await exoctl.start("wait", "--for", "ready", "--timeout", str(DEADLINE_S))
    await asyncio.sleep(0.3)
    async with served(exoctl) as daemon:
        daemon.ready_now = Readiness(False, "model_loading", "loading")
        await asyncio.sleep(0.3)
        assert process.returncode is None
        daemon.ready_now = Readiness(True)
        async with asyncio.timeout(DEADLINE_S):
            assert await process.wait() == 0
