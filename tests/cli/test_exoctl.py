"""Every command of `exoctl` as a process of its own: what it prints, what it asks, and its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from exod import VERSION
from exod.cli.base.paint import Paint
from exod.cli.main import build
from exod.cli.screens.engine import mesh_screen
from exod.cli.screens.links import links_screen
from exod.cli.screens.status import widest
from exod.daemon_api.shapes import (
    LinksReport,
    MeshHistoryLine,
    MeshReport,
    PreflightCheck,
    PreflightReport,
)
from exod.errors import ExitCode
from exod.model import EngineState, Health, NodeState
from tests.cli.running import DEADLINE_S, Exoctl, served
from tests.sample_reports import (
    CABLE,
    HERE,
    PEER,
    STARTED_AT,
    VPN,
    alone_status,
    links_of,
    pair_status,
    peer_gone_status,
    vpn_only_status,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def exoctl(tmp_path: Path) -> Exoctl:
    return Exoctl(tmp_path)


# --- status and exit codes ----------------------------------------------------------------------------------


async def test_status_shows_the_screen_without_colour_in_a_pipe(exoctl: Exoctl) -> None:
    async with served(exoctl):
        ended = await exoctl.run("status")
    assert ended.code == 0
    assert ended.out.startswith("● healthy  studio1 in cluster home, 2 nodes")
    assert "● studio2  bridge0  thunderbolt  0.312 ms" in ended.out
    assert "\x1b" not in ended.out
    assert ended.err == ""


async def test_status_json_is_the_daemons_own(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        ended = await exoctl.run("status", "--json")
        assert json.loads(ended.out) == json.loads(msgspec.json.encode(daemon.status_now))
    assert ended.code == 0


async def test_exit_codes_tell_degraded_from_no_path(exoctl: Exoctl) -> None:
    async with served(exoctl, vpn_only_status()) as daemon:
        assert (await exoctl.run("status")).code == ExitCode.DEGRADED
        assert (await exoctl.run("status", "--json")).code == ExitCode.DEGRADED
        assert (await exoctl.run("links")).code == ExitCode.DEGRADED
        for change in ({"selected": None}, {"agreed": False}):
            link = msgspec.structs.replace(vpn_only_status().links[0], **change)
            daemon.status_now = msgspec.structs.replace(vpn_only_status(), links=(link,))
            assert (await exoctl.run("status")).code == ExitCode.NO_PATH
            assert (await exoctl.run("links")).code == ExitCode.NO_PATH
        for left, code in ((False, ExitCode.NO_PATH), (True, ExitCode.DEGRADED)):
            daemon.status_now = msgspec.structs.replace(peer_gone_status(left=left), health=Health.DEGRADED)
            assert (await exoctl.run("status")).code == code
        assert (await exoctl.run("links")).code == ExitCode.OK, "nobody misses a peer that said goodbye"
        daemon.status_now = peer_gone_status(left=False)
        assert (await exoctl.run("links")).code == ExitCode.NO_PATH
        daemon.status_now = msgspec.structs.replace(pair_status(), health=Health.DOWN)
        assert (await exoctl.run("status")).code == ExitCode.DEGRADED


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("links",),
        ("ping", "studio2"),
        ("netcheck",),
        ("mesh",),
        ("engine", "status"),
        ("preflight",),
        ("chat", "hello"),
        ("events",),
        ("wait", "--timeout", "0.1"),
    ],
)
async def test_without_a_daemon_one_line_says_how_to_start_it(exoctl: Exoctl, command: tuple[str, ...]) -> None:
    ended = await exoctl.run(*command)
    assert ended.code == ExitCode.NO_DAEMON
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert "no exod is running here" in ended.err
    assert "start it with: exod run" in ended.err


async def test_with_json_an_error_is_an_object_too(exoctl: Exoctl) -> None:
    ended = await exoctl.run("status", "--json")
    error = json.loads(ended.out)["error"]
    assert (error["code"], error["exit_code"]) == ("no_daemon", 3)
    assert ended.err.count("\n") == 1
    async with served(exoctl):
        ended = await exoctl.run("links", "studo2", "--json")
    assert json.loads(ended.out)["error"]["code"] == "unknown_peer"
    assert ended.code == ExitCode.USAGE


@pytest.mark.parametrize(
    "command",
    [
        ("status",), ("links",), ("links", "history"), ("netcheck",), ("mesh",), ("mesh", "renegotiate"),
        ("mesh", "jaccl"), ("engine",), ("preflight",), ("doctor",), ("cluster", "show"), ("config", "path"),
        ("config", "show"), ("config", "check"), ("model", "ls"), ("model", "info", "a/b"), ("service", "print"),
        ("completion", "bash"), ("wait",), ("ping", "nobody"), ("top",), ("no-such-command",), ("service",), (),
        ("status", "--no-such-option"), ("links", "a", "b", "c"), ("bench", "--clients", "x"),
        ("debug", "fault", "x", "drop", "--for", "never"),
    ],
    ids=" ".join,
)  # fmt: skip
async def test_with_json_every_command_and_error_prints_one_object_with_a_schema(
    exoctl: Exoctl, command: tuple[str, ...]
) -> None:
    async with served(exoctl):
        ended = await exoctl.run(*command, "--json")
    assert json.loads(ended.out)["schema"] == 1, ended.out
    assert next(iter(json.loads(ended.out))) == "schema"


async def test_with_json_each_event_is_a_line_with_a_schema(exoctl: Exoctl) -> None:
    async with served(exoctl):
        ended = await exoctl.run("events", "--json", "--since", "20000d")
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert lines
    assert all(line["schema"] == 1 and line["type"] for line in lines)


@pytest.mark.parametrize("command", [(), ("status",), ("model", "pull")], ids=" ".join)
async def test_the_version_is_told_everywhere(exoctl: Exoctl, command: tuple[str, ...]) -> None:
    ended = await exoctl.run(*command, "--version")
    assert (ended.code, ended.out) == (0, f"{VERSION}\n")


async def test_the_socket_is_found_by_the_configuration(exoctl: Exoctl) -> None:
    config = exoctl.folder / "mine.toml"
    config.write_text(f'[node]\ndata_dir = "{exoctl.folder}"\n')
    async with served(exoctl):
        for arguments in (("--config", str(config), "status"), ("status", "--config", str(config))):
            assert (await exoctl.run(*arguments, bare=True)).code == 0
        exoctl.environment["EXOD_CONFIG"] = str(config)
        assert (await exoctl.run("status", bare=True)).code == 0
        del exoctl.environment["EXOD_CONFIG"]
        exoctl.environment["EXOD_NODE__DATA_DIR"] = str(exoctl.folder)
        assert (await exoctl.run("status", bare=True)).code == 0


async def test_a_broken_configuration_is_one_line_and_a_usage_error(exoctl: Exoctl) -> None:
    config = exoctl.folder / "mine.toml"
    config.write_text('[node]\nnmae = "x"\n')
    ended = await exoctl.run("status", "--config", str(config), bare=True)
    assert ended.code == ExitCode.USAGE
    assert ended.err.count("\n") == 1
    assert "nmae" in ended.err


async def test_global_options_work_before_and_after_a_command(exoctl: Exoctl) -> None:
    async with served(exoctl):
        for arguments in (
            ("--json", "mesh", "show"),
            ("mesh", "--json", "show"),
            ("mesh", "show", "--json"),
            ("--no-color", "mesh", "--json"),
        ):
            ended = await exoctl.run(*arguments)
            assert json.loads(ended.out)["mesh"]["epoch"] == 7
        ended = await exoctl.run("links", "history", "--json", "studio2")
        assert json.loads(ended.out)["decisions"][0]["decision"] == "selected, held for 3 s"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("statsu",), "did you mean status?"),
        (("models",), "there are: status, links"),
        (("engine", "lod"), "did you mean load?"),
        (("--json", "mesh", "shwo"), "there are: show, renegotiate"),
        (("status", "--jsn"), "--jsn"),
        (("ping",), "PEER"),
        (("ping", "studio2", "-c", "few"), "-c/--count"),
        (("wait", "--for", "rain"), "'agreed', 'ready', 'healthy'"),
        (("wait", "--timeout", "-1"), "0 or more"),
        (("debug", "fault", "bridge0", "melt"), "'drop', 'delay'"),
        (("debug", "fault", "bridge0", "delay"), "'delay' and its milliseconds"),
        (("debug", "pin", "bridge0", "--for", "ever"), "write 10, 500ms"),
        (("debug", "pin", "bridge0", "--for", "2h"), "--for: 2h: expected more than 0, and 1h at most"),
        (("debug", "fault", "bridge0", "drop", "--for", "0"), "--for: 0: expected more than 0, and 1h at most"),
        (("debug", "fault", "bridge0", "delay", "0"), "expected a number from 0.001 to 60000"),
        (("events", "--since", "yesterday"), "an age such as 10m"),
        (("links", "studio2", "studio3"), "one peer at a time"),
    ],
)
async def test_a_mistyped_word_is_one_line_that_names_what_exists(
    exoctl: Exoctl, arguments: tuple[str, ...], words: str
) -> None:
    ended = await exoctl.run(*arguments)
    assert ended.code == ExitCode.USAGE
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("exoctl: ")


@pytest.mark.parametrize(
    ("arguments", "help_of"),
    [
        (("events", "today"), "exoctl events --help"),
        (("mesh", "show", "all"), "exoctl mesh show --help"),
        (("mesh", "--json", "shwo"), "exoctl mesh --help"),
        (("engine", "native", "build", "now"), "exoctl engine native --help"),
        (("status", "-x"), "exoctl status --help"),
        (("statsu",), "exoctl --help"),
    ],
)
async def test_an_error_names_the_help_that_has_its_cure(
    exoctl: Exoctl, arguments: tuple[str, ...], help_of: str
) -> None:
    ended = await exoctl.run(*arguments)
    assert ended.code == ExitCode.USAGE
    assert ended.err.endswith(f"; see: {help_of}\n")
    assert (await exoctl.run(*help_of.split()[1:], bare=True)).code == 0


async def test_a_folder_to_load_is_meant_from_where_it_was_typed(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        for typed, meant in ((".", os.getcwd()), ("..", os.path.dirname(os.getcwd()))):
            assert (await exoctl.run("engine", "load", typed, "--no-wait")).code == 0
            assert daemon.asked[-1] == ("engine_load", meant)


async def test_help_lists_every_command_of_the_contract(exoctl: Exoctl) -> None:
    ended = await exoctl.run("--help", bare=True)
    assert ended.code == 0
    _, commands = build()
    contract = (
        "status links ping netcheck mesh engine preflight model chat bench events top wait doctor service cluster "
        "config completion report debug"
    )
    assert commands.names == contract.split()
    for name in commands.names:
        assert f"\n    {name} " in ended.out
        assert commands.help_of(name)
    assert "5 no path" in ended.out
    alone = await exoctl.run(bare=True)
    assert (alone.code, alone.out) == (ExitCode.USAGE, "")
    assert "usage: exoctl" in alone.err
    assert (await exoctl.run("--version", bare=True)).out == f"{VERSION}\n"


def test_status_imports_nothing_heavy() -> None:
    """What makes it fast is what it leaves out: this cannot be measured on a busy machine, so it is counted."""
    heavy = (
        "asyncio typer rich starlette uvicorn structlog prometheus_client psutil cryptography mlx numpy exoengine"
    )
    program = (
        "import sys\n"
        "from exod.cli.main import main\n"
        "try: main(['--socket', '/nonexistent', 'status'])\n"
        "except SystemExit: pass\n"
        "import exod.cli.screens.status, exod.daemon_api.shapes\n"
        f"print(*[name for name in {heavy.split()!r} if name in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert ended.stdout.strip() == ""


# --- links, ping, netcheck ----------------------------------------------------------------------------------


async def test_links_say_for_every_path_why_it_is_or_is_not_in_use(exoctl: Exoctl) -> None:
    async with served(exoctl):
        ended = await exoctl.run("links", "studio2")
        assert json.loads((await exoctl.run("links", "--json")).out)["links"][0]["peer_selected"] == CABLE
    assert ended.code == 0
    assert "studio2  both ends use bridge0  (selection 17; this end selects)" in ended.out
    assert "      in use: best of 3: ethernet comes after thunderbolt; score" in ended.out
    assert "thunderbolt is preferred inside one band" in ended.out
    assert "44.1 ms is over 5 ms" in ended.out


async def test_links_of_a_peer_that_is_gone_say_so_once_and_show_no_old_figures(exoctl: Exoctl) -> None:
    async with served(exoctl, peer_gone_status(left=False)) as daemon:
        down = await exoctl.run("links")
        daemon.status_now = peer_gone_status(left=True)
        left = await exoctl.run("links")
    assert down.out.splitlines() == [
        "✖ studio2 is down: silent for 1.0 s and disconnected",
        "  ✖ bridge0  thunderbolt  10.0.0.1 → 10.0.0.2          dead",
        "  ✖ en0      ethernet     192.168.7.11 → 192.168.7.12  dead",
        "  ✖ utun4    vpn          100.64.0.1 → 100.64.0.2      dead",
    ]
    assert left.out.startswith("○ studio2 has left: ")


async def test_links_that_disagree_name_both_ends_words(exoctl: Exoctl) -> None:
    (link,) = links_of(pair_status()).links
    link = msgspec.structs.replace(link, agreed=False, peer_selected=VPN, peer_seq=16)
    paint = Paint(color=False)
    head = links_screen(LinksReport((link,)), paint, 100)[0]
    assert (
        head == "▲ studio2  this end uses bridge0, the other end utun4  (selection 17, 16 there; this end selects)"
    )
    link = msgspec.structs.replace(link, peer_selected=CABLE, peer_seq=17)
    head = links_screen(LinksReport((link,)), paint, 100)[0]
    assert "both ends have selected bridge0, and have not agreed on it yet" in head
    link = msgspec.structs.replace(link, peer_state=NodeState.SUSPECT, text="silent on all paths")
    assert "▲ studio2  does not answer: silent on all paths" in links_screen(LinksReport((link,)), paint, 100)[0]


@pytest.mark.parametrize("width", [80, 100])
def test_links_fit_their_terminal(width: int) -> None:
    lines = links_screen(links_of(pair_status()), Paint(color=False), width)
    assert widest(lines) <= width
    assert any("0.312 ms" in line for line in lines)


async def test_links_history_shows_each_decision_with_its_figures(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        ended = await exoctl.run("links", "history", "studio2")
        assert daemon.asked == [("links_history", PEER, 50)]
    assert "held for 3 s" in ended.out
    assert "bridge0: up 0.31 ms" in ended.out


async def test_ping_names_the_path_and_sums_up(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        daemon.lost_pings = {1}
        ended = await exoctl.run("ping", "studio2", "--via", "utun4", "-c", "3")
        assert daemon.asked == [("ping", PEER, VPN, 3)]
        summary = json.loads((await exoctl.run("ping", "studio2", "-c", "3", "--json")).out)
        daemon.lost_pings = {0, 1}
        lost = await exoctl.run("ping", "studio2", "-c", "2")
    lines = ended.out.splitlines()
    assert lines[0] == "studio2 via utun4 (vpn) 100.64.0.1 → 100.64.0.2: 0  312 µs"
    assert lines[1].endswith("1  no answer within 1 s")
    assert lines[3] == "3 sent, 2 answered, 33 % lost; 312 µs least, 313 µs median, 314 µs most"
    assert ended.code == 0
    assert (summary["sent"], summary["answered"], summary["least_us"]) == (3, 2, 312.0)
    assert summary["replies"][0]["path"] == CABLE
    assert lost.code == ExitCode.NO_PATH


async def test_an_unknown_peer_or_interface_names_those_that_exist(exoctl: Exoctl) -> None:
    async with served(exoctl):
        peer = await exoctl.run("ping", "studio9")
        path = await exoctl.run("ping", "studio2", "--via", "en9")
    assert (peer.code, peer.err) == (2, "exoctl: no node is called 'studio9'; known: studio2\n")
    assert path.code == 2
    assert "bridge0 to studio2" in path.err


async def test_netcheck_shows_interfaces_and_checks(exoctl: Exoctl) -> None:
    async with served(exoctl):
        ended = await exoctl.run("netcheck")
    assert ended.code == 0
    assert "● bridge0  thunderbolt  up  10.0.0.1/24\n    wired (its kind: hardware port" in ended.out
    assert "● mdns _exod._tcp: heard studio2 3 s ago" in ended.out


# --- mesh, engine, preflight, debug -------------------------------------------------------------------------


async def test_mesh_and_engine_are_shown_and_steered(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        mesh = await exoctl.run("mesh")
        engine = await exoctl.run("engine")
        for arguments in (
            ("mesh", "renegotiate"),
            ("engine", "load", "--no-wait", "org/model"),
            ("engine", "unload"),
            ("engine", "drain"),
        ):
            ended = await exoctl.run(*arguments)
            assert (ended.code, ended.out.count("\n")) == (0, 1)
        assert [asked[0] for asked in daemon.asked] == [
            "renegotiate",
            "engine_load",
            "engine_unload",
            "engine_drain",
        ]
        assert daemon.asked[1][1] == "org/model"
        failed = msgspec.structs.replace(
            daemon.status_now.engine, state=EngineState.FAILED, text="/models/x: there is no such folder"
        )
        daemon.status_now = msgspec.structs.replace(daemon.status_now, engine=failed)
        broken = await exoctl.run("engine")
    assert "epoch 7, coordinator studio1" in mesh.out
    assert "studio1 → studio2  bridge0  thunderbolt  10.0.0.2:52420" in mesh.out
    assert "7, ring studio1 → studio2, noticed in 184 ms, agreed in 41.7 ms\n    bridge0 is better" in mesh.out
    assert "rank 1  studio2  layers 4-7" in engine.out
    assert broken.code == ExitCode.DEGRADED
    assert "there is no such folder" in broken.out


async def test_a_load_is_watched_to_its_outcome(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:

        def now(state: EngineState, model: str, text: str = "") -> None:
            engine = msgspec.structs.replace(daemon.status_now.engine, state=state, model=model, text=text)
            daemon.status_now = msgspec.structs.replace(daemon.status_now, engine=engine)

        now(EngineState.READY, "an/older")
        loading = asyncio.create_task(exoctl.run("engine", "load", "org/model"))
        async with asyncio.timeout(30):
            while ("engine_load", "org/model") not in daemon.asked:  # noqa: ASYNC110 - a fake's plain field
                await asyncio.sleep(0.01)
        now(EngineState.LOADING, "org/model", "layer 3 of 8")
        done, _ = await asyncio.wait([loading], timeout=1.5)
        assert not done
        now(EngineState.READY, "org/model")
        ended = await loading
        assert (ended.code, ended.out) == (0, "org/model is ready\n")
        assert "org/model: layer 3 of 8" in ended.err
        now(EngineState.FAILED, "bad/model", "there are no weights")
        broken = await exoctl.run("engine", "load", "bad/model")
        assert broken.code == ExitCode.DEGRADED
        assert broken.out == "bad/model cannot be loaded: there are no weights\n"


async def test_mesh_jaccl_prints_the_hostfile_or_why_there_is_none(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        ended = await exoctl.run("mesh", "jaccl")
        daemon.status_now = alone_status()
        alone = await exoctl.run("mesh", "jaccl")
    assert json.loads(ended.out) == {
        "backend": "jaccl",
        "envs": [],
        "hosts": [{"ssh": "studio1", "ips": ["10.0.0.1"], "rdma": [None, "rdma_en2"]}],
    }
    assert (alone.code, alone.err) == (ExitCode.NO_PATH, "exoctl: JACCL joins two nodes or more\n")


def test_a_plan_without_ranks_or_of_one_node_leaves_out_what_there_is_not() -> None:
    mesh = alone_status().mesh
    line = MeshHistoryLine(STARTED_AT, 1, "029ba27b", HERE, (), "first plan", None, None)
    lines = mesh_screen(MeshReport(mesh, None, (line,)), Paint(color=False), 100)
    assert lines[0] == "○ alone"
    assert lines[-2].endswith("  epoch 1, no rank")


async def test_preflight_prints_a_figure_each_and_a_cure_for_what_failed(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        assert (await exoctl.run("preflight")).code == 0
        failed = PreflightCheck("memory", "studio2", False, "3.1 GiB", "9 GiB are needed", "close other programs")
        daemon.preflight_now = PreflightReport(False, STARTED_AT, (*daemon.preflight_now.checks, failed))
        ended = await exoctl.run("preflight")
    assert ended.code == ExitCode.DEGRADED
    assert "● rtt     studio1 to studio2  0.31 ms  within 5 ms" in ended.out
    assert "✖ memory  studio2             3.1 GiB  9 GiB are needed\n    close other programs" in ended.out


async def test_debug_faults_reach_the_daemon_only_where_they_are_allowed(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon:
        assert (await exoctl.run("debug", "fault", "bridge0", "drop", "--for", "2m")).code == 0
        assert (await exoctl.run("debug", "fault", "bridge0", "delay", "20", "--for", "1.5")).code == 0
        assert (await exoctl.run("debug", "fault", "node", "kill-rank")).code == 0
        assert (await exoctl.run("debug", "fault", "node", "drop", "--for", "1", "20")).code == ExitCode.USAGE
        assert (await exoctl.run("debug", "fault", "bridge0", "deaf")).code == ExitCode.USAGE
        assert (await exoctl.run("debug", "pin", "utun4", "--for", "500ms")).code == 0
        assert daemon.asked == [
            ("debug_fault", CABLE, True, 0.0, 120.0),
            ("debug_fault", CABLE, False, 20.0, 1.5),
            ("debug_self_fault", "kill-rank", 10.0),
            ("debug_pin", VPN, 0.5),
        ]
    async with served(exoctl, debug=False):
        ended = await exoctl.run("debug", "pin", "utun4")
    assert ended.code == ExitCode.USAGE
    assert "[debug] enabled = true" in ended.err
