"""`exoctl service`: which commands it gives, in which order, and what it says when they fail.

launchd is played by a small model of it that answers with the texts and codes it is known for.
"""

from __future__ import annotations

import os
import plistlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from exod.cli.service import verbs as service
from exod.cli.service.host import CommandResult, Host, MisuseError, ServiceError, run_command
from exod.errors import ExitCode

UID = 501
AGENT = f"gui/{UID}/com.exod.agent"
OVER_SSH = f"user/{UID}/com.exod.agent"

NOT_FOUND = CommandResult(113, err='Could not find service "com.exod.agent" in domain for port\n')
NO_DOMAIN = CommandResult(112, err="Could not find domain for port\n")
IO_ERROR = CommandResult(
    5, err="Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors.\n"
)

PRINTED = """{target} = {{
	active count = 1
	path = {path}
	type = LaunchAgent
	state = {state}

	program = /Users/me/venv/bin/python3
	arguments = {{
		/Users/me/venv/bin/python3
		state = a sub-dictionary's
	}}

	domain = gui/501 [100005]
	minimum runtime = 5
	exit timeout = 30
	runs = 1
	{more}
}}
"""


class Launchd:
    """Domains, what is loaded in them, and every command it was given. Time passes only by `sleep`."""

    def __init__(self, domains: Sequence[str]) -> None:
        self.domains = set(domains)
        self.loaded: dict[str, str] = {}
        self.disabled: set[str] = set()
        self.ending: dict[str, int] = {}
        self.commands: list[str] = []
        self.bootstrap_answers: list[CommandResult] = []
        self.ends_after = 2
        self.state, self.more = "running", "pid = 712\n\tlast exit code = (never exited)"

    def __call__(self, argv: Sequence[str]) -> CommandResult:
        assert argv[0] == "/bin/launchctl"
        verb, target, *rest = argv[1:]
        if verb == "kill":  # its signal comes first
            rest, target = [target], rest[0]
        if verb != "print":
            self.commands.append(" ".join([verb, target, *(Path(one).name for one in rest)]))
        answer: CommandResult = getattr(self, f"_{verb}")(target, *rest)
        return answer

    def sleep(self, _: float) -> None:
        for target in list(self.ending):
            self.ending[target] -= 1
            if self.ending[target] <= 0:
                del self.ending[target], self.loaded[target]

    def _print(self, target: str) -> CommandResult:
        if target in self.domains:
            return CommandResult(0, f"{target} = {{\n\ttype = login\n}}\n")
        if target.rpartition("/")[0] not in self.domains and target not in self.loaded:
            return NO_DOMAIN if "/" not in target.partition("/")[2] else NOT_FOUND
        if target not in self.loaded:
            return NOT_FOUND
        path = self.loaded[target]
        return CommandResult(0, PRINTED.format(target=target, path=path, state=self.state, more=self.more))

    def _bootout(self, target: str) -> CommandResult:
        if target not in self.loaded:
            return CommandResult(3, err="Boot-out failed: 3: No such process\n")
        self.ending[target] = self.ends_after
        return CommandResult(36, err="Boot-out failed: 36: Operation now in progress\n")

    def _enable(self, target: str) -> CommandResult:
        self.disabled.discard(target)
        return CommandResult(0)

    def _bootstrap(self, domain: str, path: str) -> CommandResult:
        label = plistlib.loads(Path(path).read_bytes())["Label"]
        assert Path(path).name == f"{label}.plist"
        if self.bootstrap_answers:
            return self.bootstrap_answers.pop(0)
        target = f"{domain}/{label}"
        if target in self.loaded or target in self.disabled:
            return IO_ERROR
        self.loaded[target] = path
        return CommandResult(0)

    def _kill(self, target: str, _signal: str) -> CommandResult:
        return CommandResult(0) if target in self.loaded else NOT_FOUND

    def _kickstart(self, target: str) -> CommandResult:
        return CommandResult(0) if target in self.loaded else NOT_FOUND


@pytest.fixture
def launchd(monkeypatch: pytest.MonkeyPatch) -> Launchd:
    monkeypatch.delenv("EXOD_CONFIG", raising=False)
    return Launchd([f"gui/{UID}", f"user/{UID}", "system"])


def mac(launchd: Launchd, folder: Path, is_root: bool = False, uid: int = UID) -> Host:
    # Only root may give the log's folder away: a test that is not root gives it to itself.
    return Host(
        system="darwin",
        is_root=is_root,
        user="me",
        uid=(os.getuid() or uid) if is_root else uid,
        gid=os.getgid(),
        home=folder / "Users" / "me",
        python=Path("/Users/me/venv/bin/python3"),
        run=launchd,
        sleep=launchd.sleep,
        root=folder,
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- macOS --------------------------------------------------------------------------------------------------


def test_a_first_install_writes_enables_loads_and_starts(launchd: Launchd, tmp_path: Path) -> None:
    host = mac(launchd, tmp_path)
    said = service.install(host=host)
    assert launchd.commands == [
        f"enable {AGENT}",
        f"bootstrap gui/{UID} com.exod.agent.plist",
        f"kickstart {AGENT}",
    ]
    assert AGENT in said
    assert "--system" in said  # what a headless Mac needs is said
    assert files(tmp_path) == ["Users/me/Library/LaunchAgents/com.exod.agent.plist"]
    plist = host.home / "Library/LaunchAgents/com.exod.agent.plist"
    assert plist.stat().st_mode & 0o777 == 0o644
    assert (host.home / "Library/Logs/exod").is_dir()
    assert service.status(host=host) == (f"{AGENT} is running, pid 712", ExitCode.OK)


def test_installing_again_takes_the_old_job_out_first_and_waits_for_its_end(
    launchd: Launchd, tmp_path: Path
) -> None:
    host = mac(launchd, tmp_path)
    service.install(host=host)
    launchd.commands.clear()
    service.install(host=host)
    assert launchd.commands == [
        f"bootout {AGENT}",
        f"enable {AGENT}",
        f"bootstrap gui/{UID} com.exod.agent.plist",
        f"kickstart {AGENT}",
    ]


def test_over_ssh_the_users_own_domain_takes_it(launchd: Launchd, tmp_path: Path) -> None:
    launchd.domains.discard(f"gui/{UID}")
    host = mac(launchd, tmp_path)
    assert OVER_SSH in service.install(host=host)
    assert launchd.commands[-1] == f"kickstart {OVER_SSH}"
    launchd.domains.add(f"gui/{UID}")  # the user logs in: the job stays known and is found
    assert service.status(host=host)[1] is ExitCode.OK
    service.uninstall(host=host)
    assert launchd.loaded == {}


def test_a_screen_session_that_refuses_leaves_the_users_own_domain(launchd: Launchd, tmp_path: Path) -> None:
    launchd.bootstrap_answers = [
        CommandResult(125, err="Bootstrap failed: 125: Domain does not support specified action\n")
    ]
    assert OVER_SSH in service.install(host=mac(launchd, tmp_path))


def test_a_job_that_was_disabled_once_is_enabled(launchd: Launchd, tmp_path: Path) -> None:
    launchd.disabled.add(AGENT)
    service.install(host=mac(launchd, tmp_path))
    assert AGENT in launchd.loaded


def test_a_domain_that_is_still_busy_is_asked_again(launchd: Launchd, tmp_path: Path) -> None:
    launchd.bootstrap_answers = [IO_ERROR, IO_ERROR]
    service.install(host=mac(launchd, tmp_path))
    assert launchd.commands.count(f"bootstrap gui/{UID} com.exod.agent.plist") == 3
    assert AGENT in launchd.loaded


def test_what_launchd_keeps_refusing_is_one_clear_line(launchd: Launchd, tmp_path: Path) -> None:
    launchd.bootstrap_answers = [IO_ERROR] * 20
    with pytest.raises(ServiceError) as raised:
        service.install(host=mac(launchd, tmp_path))
    text = str(raised.value)
    assert "com.exod.agent.plist" in text
    assert "Bootstrap failed: 5: Input/output error" in text
    assert "\n" not in text


def test_an_error_of_bootstrap_that_loaded_the_job_all_the_same_is_none(launchd: Launchd, tmp_path: Path) -> None:
    host = mac(launchd, tmp_path)

    class Lies(Launchd):
        def _bootstrap(self, domain: str, path: str) -> CommandResult:
            super()._bootstrap(domain, path)
            return CommandResult(37, err="Bootstrap failed: 37: Operation already in progress\n")

    lies = Lies(launchd.domains)
    assert AGENT in service.install(host=host._replace(run=lies, sleep=lies.sleep))


def test_a_job_that_does_not_end_is_not_loaded_over(launchd: Launchd, tmp_path: Path) -> None:
    host = mac(launchd, tmp_path)
    service.install(host=host)
    launchd.ends_after = 10_000
    launchd.commands.clear()
    with pytest.raises(ServiceError, match="still ending after 35 s"):
        service.install(host=host)
    assert not any(command.startswith("bootstrap") for command in launchd.commands)


def test_uninstalling_leaves_nothing_behind_and_may_be_repeated(launchd: Launchd, tmp_path: Path) -> None:
    host = mac(launchd, tmp_path)
    service.install(host=host)
    logs = host.home / "Library/Logs/exod"
    (logs / "exod.err.log").write_text("started\n")
    assert "removed" in service.uninstall(host=host)
    assert launchd.loaded == {}
    assert files(tmp_path) == []
    assert not logs.exists()
    assert "nothing to do" in service.uninstall(host=host)
    assert service.status(host=host)[1] is ExitCode.NO_DAEMON


def test_a_file_of_somebody_else_among_the_logs_stays(launchd: Launchd, tmp_path: Path) -> None:
    host = mac(launchd, tmp_path)
    service.install(host=host)
    notes = host.home / "Library/Logs/exod/notes.txt"
    notes.write_text("mine")
    service.uninstall(host=host)
    assert notes.exists()


def test_a_daemon_goes_into_the_systems_domain(launchd: Launchd, tmp_path: Path) -> None:
    host = mac(launchd, tmp_path, is_root=True)
    service.install(system=True, host=host)
    assert launchd.commands == [
        "enable system/com.exod.daemon",
        "bootstrap system com.exod.daemon.plist",
        "kickstart system/com.exod.daemon",
    ]
    plist = plistlib.loads((tmp_path / "Library/LaunchDaemons/com.exod.daemon.plist").read_bytes())
    assert plist["UserName"] == "me"
    assert service.status(system=True, host=host)[1] is ExitCode.OK
    service.uninstall(system=True, host=host)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("is_root", "uid", "system", "words"),
    [
        (False, UID, True, "sudo exoctl service install --system"),
        (True, UID, False, "without sudo"),
    ],
)
def test_who_may_not_install_is_told_who_may(
    launchd: Launchd, tmp_path: Path, is_root: bool, uid: int, system: bool, words: str
) -> None:
    with pytest.raises(MisuseError, match=words) as raised:
        service.install(system=system, host=mac(launchd, tmp_path, is_root, uid))
    assert raised.value.exit_code is ExitCode.USAGE
    assert launchd.commands == []
    assert files(tmp_path) == []


def test_root_itself_is_asked_for_the_account(launchd: Launchd, tmp_path: Path) -> None:
    host = mac(launchd, tmp_path, is_root=True)._replace(uid=0)
    with pytest.raises(MisuseError, match="from the account that it should run as"):
        service.install(system=True, host=host)


def test_an_agent_and_a_daemon_are_not_installed_together(launchd: Launchd, tmp_path: Path) -> None:
    service.install(host=mac(launchd, tmp_path))
    with pytest.raises(MisuseError, match="exoctl service uninstall"):
        service.install(system=True, host=mac(launchd, tmp_path, is_root=True))


def test_the_states_between_are_degraded_and_say_what_happened(launchd: Launchd, tmp_path: Path) -> None:
    host = mac(launchd, tmp_path)
    service.install(host=host)
    launchd.state, launchd.more = "spawn scheduled", "last exit code = 1"
    text, code = service.status(host=host)
    assert code is ExitCode.DEGRADED
    assert "spawn scheduled" in text
    assert "last ended with 1" in text
    launchd.loaded.clear()
    text, code = service.status(host=host)
    assert code is ExitCode.DEGRADED
    assert "not loaded" in text


def test_a_folder_that_cannot_be_written_is_one_clear_line(launchd: Launchd, tmp_path: Path) -> None:
    host = mac(launchd, tmp_path)
    (host.home / "Library").mkdir(parents=True)
    (host.home / "Library/LaunchAgents").write_text("a file where a folder should be")
    with pytest.raises(ServiceError, match="cannot be written"):
        service.install(host=host)


def test_a_host_without_launchctl_is_one_clear_line() -> None:
    with pytest.raises(ServiceError, match="/no/such/launchctl is not installed on this host"):
        run_command(("/no/such/launchctl", "print", "system"))


def test_a_config_goes_with_the_service_and_must_exist(
    launchd: Launchd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = mac(launchd, tmp_path)
    with pytest.raises(MisuseError, match="no such config file"):
        service.install(config=tmp_path / "gone.toml", host=host)
    config = tmp_path / "exod.toml"
    config.write_text("")
    monkeypatch.setenv("EXOD_CONFIG", str(config))
    assert str(config) in service.print_unit("darwin", host=host)
    monkeypatch.delenv("EXOD_CONFIG")
    assert "--config" not in service.print_unit("darwin", host=host)
    monkeypatch.chdir(tmp_path)
    assert str(config) in service.print_unit("linux", config=Path("exod.toml"), host=host)


@pytest.mark.parametrize("system", [False, True])
def test_either_platforms_file_prints_on_any_host(system: bool) -> None:
    assert plistlib.loads(service.print_unit("darwin", system).encode())["RunAtLoad"] is True
    assert "[Service]" in service.print_unit("linux", system)


def test_what_is_printed_is_what_is_installed(launchd: Launchd, tmp_path: Path) -> None:
    host = mac(launchd, tmp_path)
    service.install(host=host)
    installed = (host.home / "Library/LaunchAgents/com.exod.agent.plist").read_text()
    assert installed == service.print_unit(host=host)


# --- Linux --------------------------------------------------------------------------------------------------


class Systemd:
    """Answers like systemctl; `silent` is a host without one to talk to."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.active = False
        self.silent = False
        self.refuses = ""

    def __call__(self, argv: Sequence[str]) -> CommandResult:
        assert argv[0] == "systemctl"
        command = " ".join(argv[1:])
        if self.silent:
            return CommandResult(1, err="Failed to connect to bus: No medium found\n")
        if "--property=Version" in argv:
            return CommandResult(0, "Version=252\n")
        if "show" in argv:
            state = "active" if self.active else "failed"
            return CommandResult(0, f"ActiveState={state}\nSubState=x\nMainPID=4711\nExecMainStatus=1\n")
        self.commands.append(command)
        if self.refuses and self.refuses in command:
            return CommandResult(1, err="Job for exod.service failed.\n")
        self.active = self.active or "restart" in argv
        return CommandResult(0)


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    monkeypatch.delenv("EXOD_CONFIG", raising=False)
    return Systemd()


def linux(systemd: Systemd, folder: Path, is_root: bool = False) -> Host:
    home = folder / "home" / "me"
    return Host("linux", is_root, "me", 1000, 1000, home, Path("/usr/bin/python3"), systemd, root=folder)


def test_a_user_unit_is_written_enabled_and_started(systemd: Systemd, tmp_path: Path) -> None:
    host = linux(systemd, tmp_path)
    said = service.install(host=host)
    assert systemd.commands == [
        "--user daemon-reload",
        "--user enable exod.service",
        "--user restart exod.service",
    ]
    assert "loginctl enable-linger me" in said
    assert files(tmp_path) == ["home/me/.config/systemd/user/exod.service"]
    assert service.status(host=host) == ("exod.service is running, pid 4711", ExitCode.OK)


def test_a_units_end_leaves_nothing_behind(systemd: Systemd, tmp_path: Path) -> None:
    host = linux(systemd, tmp_path)
    host.home.mkdir(parents=True)
    (host.home / ".config").mkdir()
    service.install(host=host)
    systemd.commands.clear()
    service.uninstall(host=host)
    assert systemd.commands == [
        "--user disable --now exod.service",
        "--user daemon-reload",
        "--user reset-failed exod.service",
    ]
    assert list((host.home / ".config").iterdir()) == []
    assert "nothing to do" in service.uninstall(host=host)
    assert service.status(host=host)[1] is ExitCode.NO_DAEMON


def test_a_system_unit_runs_as_the_user_who_called_sudo(systemd: Systemd, tmp_path: Path) -> None:
    host = linux(systemd, tmp_path, is_root=True)
    service.install(system=True, host=host)
    assert systemd.commands[-1] == "restart exod.service"
    assert "User=me" in (tmp_path / "etc/systemd/system/exod.service").read_text()
    with pytest.raises(MisuseError, match="without sudo"):
        service.install(host=host)
    with pytest.raises(MisuseError, match="sudo exoctl service uninstall --system"):
        service.uninstall(system=True, host=linux(systemd, tmp_path))


def test_without_a_systemd_nothing_is_written(systemd: Systemd, tmp_path: Path) -> None:
    systemd.silent = True
    with pytest.raises(ServiceError, match="systemd does not answer"):
        service.install(host=linux(systemd, tmp_path))
    assert files(tmp_path) == []


def test_a_unit_that_does_not_start_is_one_clear_line(systemd: Systemd, tmp_path: Path) -> None:
    systemd.refuses = "restart"
    host = linux(systemd, tmp_path)
    with pytest.raises(ServiceError, match=r"systemd does not start .*exod\.service: Job for"):
        service.install(host=host)
    text, code = service.status(host=host)
    assert code is ExitCode.DEGRADED
    assert "exit code 1" in text
