"""`exoctl service install` on a Mac: exod.app is made once, signed, and left alone as long as it is the same."""

from __future__ import annotations

import plistlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from exod.cli.service import verbs as service
from exod.cli.service.host import CommandResult, Host, MisuseError, ServiceError, shared_library
from launchd import app
from tests.cli.test_service import UID, Launchd, Systemd, files, linux, mac

LIBRARY = Path("/opt/homebrew/opt/python@3.13/Frameworks/Python.framework/Versions/3.13/Python")


class Mac(Launchd):
    """launchd with codesign and cc beside it. A signature is a line at the end of the executable."""

    def __init__(self) -> None:
        super().__init__([f"gui/{UID}", f"user/{UID}", "system"])
        self.tools: list[str] = []
        self.codesign_fails = False

    def __call__(self, argv: Sequence[str]) -> CommandResult:
        match Path(argv[0]).name:
            case "codesign":
                return self._codesign(argv)
            case "cc":
                self.tools.append("cc")
                Path(argv[argv.index("-o") + 1]).write_bytes(b"built here")
                return CommandResult(0)
        return super().__call__(argv)

    def _codesign(self, argv: Sequence[str]) -> CommandResult:
        executable = Path(argv[-1]) / "Contents/MacOS/exod"
        if "--verify" in argv:
            return CommandResult(0 if executable.read_bytes().endswith(b"signed") else 1)
        self.tools.append(" ".join(argv[1:-1]))
        if self.codesign_fails:
            return CommandResult(1, err="error: can't exec 'codesign_allocate'\n")
        executable.write_bytes(executable.read_bytes() + b"signed")
        return CommandResult(0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Mac:
    monkeypatch.delenv("EXOD_CONFIG", raising=False)
    return Mac()


def with_library(machine: Mac, folder: Path) -> Host:
    return mac(machine, folder)._replace(library=LIBRARY)


SIGN = "--force --sign - --identifier com.exod.launcher"


def test_the_agents_program_is_a_signed_bundle_at_a_fixed_path(machine: Mac, tmp_path: Path) -> None:
    host = with_library(machine, tmp_path)
    said = service.install(host=host)
    bundle = host.home / "Applications/exod.app"
    plist = plistlib.loads((host.home / "Library/LaunchAgents/com.exod.agent.plist").read_bytes())
    assert plist["ProgramArguments"] == [str(bundle / "Contents/MacOS/exod"), "run"]
    assert (bundle / "Contents/MacOS/exod").read_bytes() == app.prebuilt() + b"signed"
    assert (bundle / "Contents/MacOS/exod").stat().st_mode & 0o777 == 0o755
    assert plistlib.loads((bundle / "Contents/Info.plist").read_bytes())["CFBundleIdentifier"] == app.IDENTIFIER
    assert machine.tools == [SIGN]
    settings = (host.home / "Library/Application Support/exod/launcher.conf").read_text().splitlines()
    assert settings[:2] == [f"library={LIBRARY}", f"python={host.python}"]
    assert "Local Network, entry “exod”" in said
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["exod.app"]


def _as_written(folder: Path) -> list[tuple[object, ...]]:
    """All but when each file was read last, which whoever reads it changes."""
    found = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
    return [(path, one.st_ino, one.st_mode, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for path, one in found]


def test_an_upgrade_touches_nothing_inside_the_bundle(machine: Mac, tmp_path: Path) -> None:
    """Another environment, another Python: only the settings outside change, so a grant survives."""
    host = with_library(machine, tmp_path)
    service.install(host=host)
    inside = _as_written(host.home / "Applications")
    newer = host._replace(python=Path("/Users/me/new/bin/python3"), library=Path("/opt/new/Python"))
    assert "Local Network" not in service.install(host=newer)
    assert _as_written(host.home / "Applications") == inside
    assert machine.tools == [SIGN]
    settings = (host.home / "Library/Application Support/exod/launcher.conf").read_text()
    assert "library=/opt/new/Python\npython=/Users/me/new/bin/python3\n" in settings


def test_a_bundle_that_was_changed_is_made_again(machine: Mac, tmp_path: Path) -> None:
    host = with_library(machine, tmp_path)
    service.install(host=host)
    executable = host.home / "Applications/exod.app/Contents/MacOS/exod"
    executable.write_bytes(b"something else")
    service.install(host=host)
    assert executable.read_bytes() == app.prebuilt() + b"signed"


def test_a_person_may_have_the_launcher_built_here_and_it_stays(machine: Mac, tmp_path: Path) -> None:
    host = with_library(machine, tmp_path)
    service.install(host=host, build_launcher=True)
    executable = host.home / "Applications/exod.app/Contents/MacOS/exod"
    assert executable.read_bytes() == b"built heresigned"
    service.install(host=host)
    assert executable.read_bytes() == b"built heresigned"
    assert machine.tools == ["cc", SIGN]


def test_a_bundle_that_cannot_be_signed_is_one_line_and_leaves_nothing(machine: Mac, tmp_path: Path) -> None:
    machine.codesign_fails = True
    with pytest.raises(ServiceError, match=r"codesign_allocate.*xcode-select --install"):
        service.install(host=with_library(machine, tmp_path))
    assert files(tmp_path) == []


def test_a_bundle_that_cannot_be_made_leaves_the_running_job_alone(machine: Mac, tmp_path: Path) -> None:
    service.install(host=mac(machine, tmp_path))
    loaded = dict(machine.loaded)
    machine.codesign_fails = True
    with pytest.raises(ServiceError):
        service.install(host=with_library(machine, tmp_path))
    assert machine.loaded == loaded
    assert machine.ending == {}


def test_uninstalling_takes_the_bundle_and_its_settings_away(machine: Mac, tmp_path: Path) -> None:
    host = with_library(machine, tmp_path)
    service.install(host=host)
    service.uninstall(host=host)
    assert files(tmp_path) == []
    assert not (host.home / "Applications/exod.app").exists()


def test_a_python_without_a_library_starts_itself_and_says_so(machine: Mac, tmp_path: Path) -> None:
    host = mac(machine, tmp_path)
    assert "no shared library" in service.install(host=host)
    plist = plistlib.loads((host.home / "Library/LaunchAgents/com.exod.agent.plist").read_bytes())
    assert plist["ProgramArguments"][:4] == [str(host.python), "-P", "-m", "exod"]
    with pytest.raises(MisuseError, match="--build-launcher"):
        service.install(host=host, build_launcher=True)


@pytest.mark.parametrize(
    ("kind", "variables", "found"),
    [
        ("Homebrew", {"PYTHONFRAMEWORKPREFIX": "{}/Cellar/python@3.13/3.13.5/Frameworks", "LDLIBRARY": "Py.fw/Py"},
         "{}/opt/python@3.13/Frameworks/Py.fw/Py"),
        ("Homebrew's link", {"PYTHONFRAMEWORKPREFIX": "{}/opt/python@3.13/Frameworks", "LDLIBRARY": "Py.fw/Py"},
         "{}/opt/python@3.13/Frameworks/Py.fw/Py"),
        ("python.org", {"PYTHONFRAMEWORKPREFIX": "{}/Library/Frameworks", "LDLIBRARY": "Py.fw/Py"},
         "{}/Library/Frameworks/Py.fw/Py"),
        ("uv, which moved it", {"LIBDIR": "/install/lib", "LDLIBRARY": "libpython3.13.dylib"},
         "{}/uv/lib/libpython3.13.dylib"),
        ("pyenv, as it builds by default", {"LIBDIR": "{}/uv/lib", "LDLIBRARY": "libpython3.13.a"}, None),
    ],
)  # fmt: skip
def test_pythons_library_is_found_whoever_built_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, variables: dict[str, str], found: str | None
) -> None:
    for name in (
        "Cellar/python@3.13/3.13.5/Frameworks/Py.fw/Py",
        "Library/Frameworks/Py.fw/Py",
        "uv/lib/libpython3.13.dylib",
        "uv/lib/libpython3.13.a",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/python@3.13").symlink_to(tmp_path / "Cellar/python@3.13/3.13.5")
    values = {name: text.format(tmp_path) for name, text in variables.items()}
    monkeypatch.setattr("exod.cli.service.host.sysconfig.get_config_var", values.get)
    monkeypatch.setattr("exod.cli.service.host.sys.base_prefix", str(tmp_path / "uv"))
    assert shared_library() == (Path(found.format(tmp_path)) if found else None), kind


def test_what_is_printed_is_what_is_installed_here_too(machine: Mac, tmp_path: Path) -> None:
    host = with_library(machine, tmp_path)
    service.install(host=host)
    installed = (host.home / "Library/LaunchAgents/com.exod.agent.plist").read_text()
    assert installed == service.print_unit(host=host)


def test_what_launchd_refuses_is_told_with_its_cause(machine: Mac, tmp_path: Path) -> None:
    refusal = CommandResult(5, err="Bootstrap failed: 5: Input/output error\n")
    machine.bootstrap_answers = [refusal] * 20
    with pytest.raises(ServiceError, match="Login Items & Extensions, Allow in the Background"):
        service.install(host=with_library(machine, tmp_path))


# --- upgrade -------------------------------------------------------------------------------------------------


def test_an_upgrade_in_place_replaces_the_daemon_alone(machine: Mac, tmp_path: Path) -> None:
    """Killed, not asked to leave: the rank's process lives on. Bundle and property list stay as they are."""
    host = with_library(machine, tmp_path)
    service.install(host=host)
    machine.commands.clear()
    said = service.upgrade(host=host._replace(library=Path("/opt/newer/Python")))
    target = f"gui/{UID}/com.exod.agent"
    assert machine.commands == [f"kill {target} SIGKILL", f"kickstart {target}"]
    assert "a running answer goes on" in said
    assert machine.tools == [SIGN]
    assert "library=/opt/newer/Python" in (host.home / "Library/Application Support/exod/launcher.conf").read_text()


def test_an_upgrade_to_another_environment_keeps_the_configuration(machine: Mac, tmp_path: Path) -> None:
    host = with_library(machine, tmp_path)
    config = tmp_path / "exod.toml"
    config.write_text("")
    service.install(config=config, host=host)
    machine.commands.clear()
    said = service.upgrade(host=host._replace(python=Path("/Users/me/new/bin/python3")))
    assert f"bootstrap gui/{UID} com.exod.agent.plist" in machine.commands
    assert "a running answer ended" in said
    plist = plistlib.loads((host.home / "Library/LaunchAgents/com.exod.agent.plist").read_bytes())
    assert plist["ProgramArguments"][-2:] == ["--config", str(config)]
    assert plist["EnvironmentVariables"]["PATH"].startswith("/Users/me/new/bin:")


def test_without_an_install_there_is_nothing_to_upgrade(machine: Mac, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="exoctl service install"):
        service.upgrade(host=with_library(machine, tmp_path))
    plist = tmp_path / "Users/me/Library/LaunchAgents/com.exod.agent.plist"
    plist.parent.mkdir(parents=True)
    plist.write_text("nonsense")
    with pytest.raises(ServiceError, match="cannot be read"):
        service.upgrade(host=with_library(machine, tmp_path))


def test_a_unit_is_upgraded_with_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXOD_CONFIG", raising=False)
    systemd = Systemd()
    host = linux(systemd, tmp_path)
    config = tmp_path / 'of "50%" $HOME.toml'
    config.write_text("")
    service.install(config=config, host=host)
    unit = tmp_path / "home/me/.config/systemd/user/exod.service"
    before = unit.read_text()
    service.upgrade(host=host)
    assert unit.read_text() == before
    service.upgrade(host=host._replace(python=Path("/opt/new/bin/python3")))
    assert unit.read_text() == before.replace("/usr/bin/python3", "/opt/new/bin/python3").replace(
        "PATH=/usr/bin:", "PATH=/opt/new/bin:"
    )


def test_uninstalling_takes_rotated_logs_away(machine: Mac, tmp_path: Path) -> None:
    host = with_library(machine, tmp_path)
    service.install(host=host)
    for name in ("exod.log", "exod.log.1", "exod.log.2", "exod.err.log"):
        (host.home / "Library/Logs/exod" / name).write_text("x")
    service.uninstall(host=host)
    assert files(tmp_path) == []
