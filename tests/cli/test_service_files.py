"""The texts that start exod with the machine, read back by what will read them."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import launchd
from launchd import Job
from tests.conftest import missing

JOB = Job(PurePosixPath("/Users/me/exo venv/bin/python3"), "me", PurePosixPath("/Users/me"))
AWKWARD = JOB._replace(config=PurePosixPath('/Users/me/R&D <mesh> "50%" $HOME.toml'))

BOTH = pytest.mark.parametrize("render", [launchd.render_agent, launchd.render_daemon], ids=["agent", "daemon"])


def by_plistlib(text: str) -> dict[str, Any]:
    read: dict[str, Any] = plistlib.loads(text.encode(), fmt=plistlib.FMT_XML)
    return read


def by_plistutil(text: str, folder: Path) -> dict[str, Any]:
    """libplist's reader. It exits with 0 on anything: what counts is what it writes back."""
    if shutil.which("plistutil") is None:
        missing("Debian's libplist-utils is not installed")
    (folder / "in.plist").write_text(text)
    out = folder / "out.plist"
    subprocess.run(["plistutil", "-i", folder / "in.plist", "-o", out, "-f", "bin"], check=True, timeout=60)
    assert out.exists(), "plistutil wrote nothing back"
    assert out.stat().st_size, "plistutil wrote nothing back"
    read: dict[str, Any] = plistlib.loads(out.read_bytes(), fmt=plistlib.FMT_BINARY)
    return read


@BOTH
@pytest.mark.parametrize("job", [JOB, AWKWARD], ids=["plain", "awkward"])
def test_two_readers_read_the_same_property_list(render: Any, job: Job, tmp_path: Path) -> None:
    text = render(job)
    assert by_plistutil(text, tmp_path) == by_plistlib(text)
    assert by_plistlib(text)["ProgramArguments"] == list(job.arguments)


def test_a_reader_that_is_given_nonsense_is_found_out(tmp_path: Path) -> None:
    with pytest.raises((AssertionError, plistlib.InvalidFileException, subprocess.CalledProcessError)):
        by_plistutil("<plist><dict><key>Label</key></plist", tmp_path)


@BOTH
def test_what_launchd_needs_is_there(render: Any) -> None:
    job = by_plistlib(render(JOB))
    assert job["ProgramArguments"] == ["/Users/me/exo venv/bin/python3", "-P", "-m", "exod", "run"]
    assert PurePosixPath(job["ProgramArguments"][0]).is_absolute()
    assert job["RunAtLoad"] is True
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert 0 < job["ThrottleInterval"] <= 10
    assert job["ExitTimeOut"] == 30
    assert job["ProcessType"] == "Interactive"
    assert job["AbandonProcessGroup"] is True
    assert job["SoftResourceLimits"]["NumberOfFiles"] >= 4096
    assert job["Umask"] == 0o077
    assert job["EnvironmentVariables"]["PATH"].startswith("/Users/me/exo venv/bin:/opt/homebrew/bin:")
    for key in ("StandardOutPath", "StandardErrorPath"):
        assert job[key].startswith("/Users/me/Library/Logs/exod/")


def test_the_agent_loads_into_every_session_and_the_daemon_is_a_users() -> None:
    agent, daemon = by_plistlib(launchd.render_agent(JOB)), by_plistlib(launchd.render_daemon(JOB))
    assert agent["Label"] == "com.exod.agent"
    assert sorted(agent["LimitLoadToSessionType"]) == sorted(
        ["Aqua", "Background", "LoginWindow", "StandardIO", "System"]
    )
    assert "UserName" not in agent
    assert daemon["Label"] == "com.exod.daemon"
    assert daemon["UserName"] == "me"
    assert "LimitLoadToSessionType" not in daemon
    assert daemon["EnvironmentVariables"]["HOME"] == "/Users/me"


def test_a_config_is_passed_on() -> None:
    job = by_plistlib(launchd.render_agent(AWKWARD))
    assert job["ProgramArguments"][-2:] == ["--config", '/Users/me/R&D <mesh> "50%" $HOME.toml']


def test_characters_that_would_end_a_line_are_refused() -> None:
    for text in ("/Users/me\nExecStart=/bin/sh", "/Users/m\x00e"):
        for render in (launchd.render_agent, launchd.render_system_unit):
            with pytest.raises(ValueError, match="no service file can carry"):
                render(JOB._replace(home=PurePosixPath(text)))


def unit_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_units_restart_on_failure_alone_and_let_the_daemon_end_its_workers() -> None:
    for text in (launchd.render_user_unit(JOB), launchd.render_system_unit(JOB)):
        lines = unit_lines(text)
        for line in ("Restart=on-failure", "KillMode=mixed", "TimeoutStopSec=30", "UMask=0077"):
            assert line in lines
    assert "User=me" in unit_lines(launchd.render_system_unit(JOB))
    assert not any(line.startswith("User=") for line in unit_lines(launchd.render_user_unit(JOB)))


def test_awkward_words_reach_the_command_as_they_are() -> None:
    (start,) = [line for line in unit_lines(launchd.render_user_unit(AWKWARD)) if line.startswith("ExecStart=")]
    assert start == (
        'ExecStart="/Users/me/exo venv/bin/python3" "-P" "-m" "exod" "run" "--config" '
        '"/Users/me/R&D <mesh> \\"50%%\\" $$HOME.toml"'
    )


@pytest.mark.parametrize("system", [False, True], ids=["user", "system"])
def test_systemd_finds_nothing_wrong(system: bool, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    python = PurePosixPath(shutil.which("python3") or "/usr/bin/python3")
    job = AWKWARD._replace(python=python, user="root", home=PurePosixPath("/root"))
    unit = tmp_path / launchd.UNIT_NAME
    unit.write_text(launchd.render_system_unit(job) if system else launchd.render_user_unit(job))
    argv = ["systemd-analyze", *([] if system else ["--user"]), "verify", str(unit)]

    def complaints() -> list[str]:
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=environment)
        return [line for line in done.stderr.splitlines() if launchd.UNIT_NAME in line]

    assert complaints() == []
    # Planted: the same reader does complain where there is something to complain about.
    unit.write_text(unit.read_text().replace("Restart=on-failure", "Restart=sometimes"))
    assert any("sometimes" in line for line in complaints())
