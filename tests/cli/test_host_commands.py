"""`exoctl doctor`, `cluster` and `service`: what works on this host's own files, with and without a daemon."""

from __future__ import annotations

import json
import os
import plistlib
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from exod.cli.commands import cluster_commands
from exod.cli.commands.host_commands import _folder
from exod.cli.service import verbs as service
from exod.config.settings import build
from exod.daemon_api.shapes import Finding
from exod.errors import ExitCode
from exod.identity import claim
from tests.cli.running import Exoctl, served
from tests.sample_reports import PEER

pytestmark = pytest.mark.anyio


@pytest.fixture
def exoctl(tmp_path: Path) -> Exoctl:
    return Exoctl(tmp_path)


# --- doctor -------------------------------------------------------------------------------------------------


async def test_doctor_without_a_daemon_says_how_to_start_one(exoctl: Exoctl) -> None:
    ended = await exoctl.run("doctor")
    assert ended.code == ExitCode.DEGRADED
    assert "no exod is running here" in ended.out
    assert "exoctl service install" in ended.out


async def test_doctor_adds_what_the_daemon_finds(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        assert (await exoctl.run("doctor")).code == 0
        daemon.findings = (
            Finding(
                "network.privacy", "error", "en0", "this Mac keeps exod off the local network", "open Settings"
            ),
        )
        ended = await exoctl.run("doctor")
        report = json.loads((await exoctl.run("doctor", "--json")).out)
    assert ended.code == ExitCode.DEGRADED
    assert "✖ en0: this Mac keeps exod off the local network\n    open Settings" in ended.out
    assert report["findings"][0]["code"] == "network.privacy"
    assert "routes" in report["checked"]


async def test_doctor_names_what_is_in_the_way_of_the_data_folder(exoctl: Exoctl) -> None:
    """A daemon whose folder was removed cannot be asked: its control socket lies there."""
    way = exoctl.folder / "data"
    way.write_text("no folder")
    ended = await exoctl.run("doctor")
    assert ended.code == ExitCode.DEGRADED
    assert f"{way}: is in the way of the data folder and is no folder move it away" in " ".join(ended.out.split())


@pytest.mark.parametrize(
    ("missing", "flags", "said", "cure"),
    [
        ("", os.ST_RDONLY, "the disk of the data folder is read-only", "set node.data_dir to another folder"),
        ("none/data", os.ST_RDONLY, "the disk of the data folder is read-only", "set node.data_dir"),
        ("none/data", 0, "this user cannot make the data folder", "set node.data_dir"),
        ("", 0, "this user cannot write the data folder", "sudo chown"),
    ],
)
async def test_doctor_names_a_data_folder_that_cannot_be_made_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, flags: int, said: str, cure: str
) -> None:
    """Root may write anywhere but on such a disk, so the system's answers are played."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    (finding,) = _folder(build({"node": {"data_dir": str(tmp_path / missing)}}, {}, None))
    assert said in finding.text
    assert cure in finding.cure


async def test_doctor_names_a_broken_configuration_and_a_key_that_others_can_read(exoctl: Exoctl) -> None:
    config = exoctl.folder / "mine.toml"
    config.write_text("[node]\nx = 1\n")
    ended = await exoctl.run("doctor", "--config", str(config))
    assert ended.code == ExitCode.DEGRADED
    assert "configuration: " in ended.out
    key = exoctl.folder / "data" / "exod" / "cluster.key"
    key.parent.mkdir(parents=True)
    key.write_text("ab" * 32 + "\n")
    key.chmod(0o644)
    ended = await exoctl.run("doctor")
    assert f"chmod 600 {key}" in ended.out


async def test_doctor_warns_of_fast_synch_in_the_shell_and_in_an_installed_job(exoctl: Exoctl) -> None:
    async with served(exoctl):
        job = exoctl.folder / "Library" / "LaunchAgents" / "com.exod.agent.plist"
        job.parent.mkdir(parents=True)
        job.write_bytes(plistlib.dumps({"EnvironmentVariables": {"MLX_METAL_FAST_SYNCH": "1"}}))
        (finding,) = json.loads((await exoctl.run("doctor", "--json")).out)["findings"]
        assert str(job) in finding["text"]
        assert finding["cure"] == "write the job anew: exoctl service install"
        for harmless in (b"not a plist", plistlib.dumps({"EnvironmentVariables": {"PATH": "/bin"}})):
            job.write_bytes(harmless)
            assert (await exoctl.run("doctor")).code == 0
        exoctl.environment["MLX_METAL_FAST_SYNCH"] = "1"
        ended = await exoctl.run("doctor")
    assert ended.code == ExitCode.DEGRADED
    assert "▲ MLX_METAL_FAST_SYNCH is set in this shell's environment" in ended.out


# --- cluster ------------------------------------------------------------------------------------------------


def key_file(exoctl: Exoctl) -> Path:
    return exoctl.folder / "data" / "exod" / "cluster.key"


async def test_a_key_travels_by_invitation_from_one_host_to_the_next(tmp_path: Path) -> None:
    first, second = Exoctl(tmp_path / "one"), Exoctl(tmp_path / "two")
    made = await first.run("cluster", "init", bare=True)
    invitation = await first.run("cluster", "invite", bare=True)
    assert (made.code, invitation.code) == (0, 0)
    assert invitation.out.count("\n") == 1, "the invitation alone, to be piped"
    joined = await second.run("cluster", "join", invitation.out.strip(), bare=True)
    assert joined.code == 0
    assert key_file(first).read_text() == key_file(second).read_text()
    assert stat.S_IMODE(key_file(second).stat().st_mode) == 0o600
    shown = [json.loads((await host.run("cluster", "show", "--json", bare=True)).out) for host in (first, second)]
    assert shown[0]["key_fingerprint"] == shown[1]["key_fingerprint"]
    assert shown[0]["key_fingerprint"] in made.out
    again = await second.run("cluster", "join", "-", stdin=invitation.out, bare=True)
    assert (again.code, "here already" in again.out) == (0, True)


async def test_a_key_that_is_there_is_never_lost(exoctl: Exoctl, tmp_path: Path) -> None:
    other = Exoctl(tmp_path / "other")
    await other.run("cluster", "init", bare=True)
    token = (await other.run("cluster", "invite", bare=True)).out.strip()
    await exoctl.run("cluster", "init", bare=True)
    before = key_file(exoctl).read_text()
    refused = [await exoctl.run("cluster", *words, bare=True) for words in (("init",), ("join", token))]
    assert [ended.code for ended in refused] == [ExitCode.USAGE, ExitCode.USAGE]
    assert "--replace" in refused[1].err
    assert key_file(exoctl).read_text() == before
    replaced = await exoctl.run("cluster", "join", token, "--replace", bare=True)
    assert replaced.code == 0
    assert key_file(exoctl).read_text() == key_file(other).read_text()
    (aside,) = key_file(exoctl).parent.glob("cluster.key.*")
    assert aside.read_text() == before
    assert str(aside) in replaced.out


async def test_with_a_socket_alone_the_key_is_that_of_its_daemon(exoctl: Exoctl, tmp_path: Path) -> None:
    """Not that of the default data folder, which belongs to another cluster here."""
    other = Exoctl(tmp_path / "other")
    await other.run("cluster", "init", bare=True)
    expected = (await other.run("cluster", "invite", bare=True)).out
    await exoctl.run("cluster", "init", bare=True)
    async with served(exoctl) as daemon:
        daemon.key_file = str(key_file(other))
        invited = await exoctl.run("cluster", "invite")
        joined = await exoctl.run("cluster", "join", expected.strip())
    assert (invited.code, invited.out) == (0, expected)
    assert (joined.code, "here already" in joined.out) == (0, True)
    nobody = [await exoctl.run("cluster", command) for command in ("invite", "show", "init", "renew-identity")]
    assert [ended.code for ended in nobody] == [ExitCode.NO_DAEMON] * 4
    assert all("nothing answers at" in ended.err for ended in nobody)


@pytest.mark.parametrize("token", ["exod1-abc", "hello", ""])
async def test_half_an_invitation_is_refused_in_one_line(exoctl: Exoctl, token: str) -> None:
    ended = await exoctl.run("cluster", "join", token, bare=True)
    assert ended.code == ExitCode.USAGE
    assert ended.err.count("\n") == 1
    assert not key_file(exoctl).exists()


async def test_joining_a_cluster_of_another_name_says_what_to_set(exoctl: Exoctl, tmp_path: Path) -> None:
    other = Exoctl(tmp_path / "other")
    other.environment["EXOD_CLUSTER__NAME"] = "studio"
    await other.run("cluster", "init", bare=True)
    token = (await other.run("cluster", "invite", bare=True)).out.strip()
    ended = await exoctl.run("cluster", "join", token, bare=True)
    assert ended.code == 0
    assert '[cluster] name = "studio"' in ended.err


async def test_the_cluster_is_shown_with_its_nodes_where_a_daemon_runs(exoctl: Exoctl) -> None:
    async with served(exoctl):
        ended = await exoctl.run("cluster")
    assert ended.code == 0
    assert "0123-4567-89ab-cdef" in ended.out
    assert "● studio2  up" in ended.out
    without_key = await exoctl.run("cluster", "show", bare=True)
    assert without_key.code == ExitCode.USAGE
    assert "exoctl cluster init" in without_key.err


# --- service ------------------------------------------------------------------------------------------------


async def test_no_service_is_installed_beside_an_exod_that_runs_in_a_terminal(exoctl: Exoctl) -> None:
    """As after `make run`: both would want one data folder, and the service would end at each start."""
    if service.status()[1] is not ExitCode.NO_DAEMON:
        pytest.skip("exod is installed as a service of this account: it would be installed again")
    async with served(exoctl):
        ended = await exoctl.run("service", "install")
    assert ended.code == ExitCode.USAGE
    assert "exod runs here already" in ended.err
    assert "Ctrl-C" in ended.err
    assert not list(exoctl.folder.rglob("exod.service"))


async def test_service_print_writes_the_unit_of_either_platform(exoctl: Exoctl) -> None:
    plist = await exoctl.run("service", "print", "--platform", "darwin", bare=True)
    unit = await exoctl.run("service", "print", "--platform", "linux", bare=True)
    assert (plist.code, unit.code) == (0, 0)
    assert plistlib.loads(plist.out.encode())["RunAtLoad"] is True
    assert "[Service]" in unit.out
    odd = await exoctl.run("service", "print", "--platform", "beos", bare=True)
    assert odd.code == ExitCode.USAGE


def test_an_invitation_is_asked_for_unseen_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unseen(text: str) -> str:
        asked.append(text)
        return "exod1-token"

    monkeypatch.setattr("getpass.getpass", unseen)
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    assert cluster_commands.asked(None) == "exod1-token"
    assert asked == ["invitation (it is not shown): "]


async def test_an_invitation_is_read_where_nobody_can_be_asked(exoctl: Exoctl) -> None:
    ended = await exoctl.run("cluster", "join", stdin="nonsense\n", bare=True)
    assert ended.code == ExitCode.USAGE
    assert "nonsense" not in ended.out + ended.err


async def test_a_node_is_forgotten_by_its_name(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        ended = await exoctl.run("cluster", "forget", "studio2")
        unknown = await exoctl.run("cluster", "forget", "studio9")
    assert (ended.code, "run this there, too" in ended.out) == (0, True)
    assert daemon.asked == [("cluster_forget", PEER)]
    assert unknown.code != 0
    assert "studio2" in unknown.err


async def test_a_copied_folder_gets_an_identity_of_its_own(exoctl: Exoctl) -> None:
    folder = exoctl.folder / "node"
    config = exoctl.folder / "exod.toml"
    config.write_text(f'[node]\ndata_dir = "{folder}"\n')
    first = claim(folder)
    first.release()
    ended = await exoctl.run("cluster", "renew-identity", "--config", str(config), "--json", bare=True)
    assert ended.code == 0
    assert json.loads(ended.out)["moved_aside"].startswith(str(folder / "identity.json."))
    second = claim(folder)
    second.release()
    assert second.id != first.id


async def test_the_key_is_rotated_and_a_node_removed_by_its_name(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        rotated = await exoctl.run("cluster", "rotate")
        removed = await exoctl.run("cluster", "remove", "studio2", "--json")
        invited = await exoctl.run("cluster", "invite", "--for", "10m", "--once")
        for_ever = await exoctl.run("cluster", "invite", "--for", "9000h")
    assert (rotated.code, rotated.out) == (0, "the cluster has a new key\n")
    assert json.loads(removed.out)["text"] == "removed"
    assert invited.out == "exod2-word\n"
    assert for_ever.code == ExitCode.USAGE
    assert daemon.asked == [("cluster_rotate",), ("cluster_remove", PEER), ("cluster_invite", 600.0, True)]


async def test_each_command_of_the_key_says_what_a_restart_is_needed_for(exoctl: Exoctl) -> None:
    quiet = await exoctl.run("cluster", "init", bare=True)
    assert "restart" not in quiet.out
    socket_file = key_file(exoctl).with_name("exod.sock")
    socket_file.touch()
    made = await exoctl.run("cluster", "init", "--replace", bare=True)
    renewed = await exoctl.run("cluster", "renew-identity", bare=True)
    for ended in (made, renewed):
        assert "until you restart it" in ended.out
    as_json = await exoctl.run("cluster", "init", "--replace", "--json", bare=True)
    assert json.loads(as_json.out)["restart_needed"] is True
