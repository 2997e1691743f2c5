"""`exoctl service install --system` on a Mac tells what the started service found out about the local network."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from exod.cli.service import self_check
from exod.cli.service import verbs as service
from exod.cli.service.host import Host
from exod.core.status.local_network import denied_text
from exod.model import Event
from tests.cli.test_service import UID, Launchd, mac


def checked(allowed: bool, text: str = "") -> bytes:
    event = Event(1.7e9, "local_network.checked", "00000000000000aa", {"allowed": allowed, "text": text})
    return msgspec.json.encode(event) + b"\n"


class Started(Launchd):
    """launchd, and a daemon that writes `line` to the log of `folder` after some seconds."""

    def __init__(self, folder: Path, line: bytes = b"", after_s: float = 31.0) -> None:
        super().__init__([f"gui/{UID}", f"user/{UID}", "system"])
        self.log, self.line, self.after_s = folder / "events.ndjson", line, after_s
        self.waited_s = 0.0

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.waited_s < self.after_s <= self.waited_s + seconds and self.line:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as stream:
                stream.write(self.line)
        self.waited_s += seconds


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXOD_CONFIG", raising=False)


def folder_of(host: Host) -> Path:
    return host.home / "Library/Application Support/exod"


def host_of(launchd: Started, folder: Path) -> Host:
    return mac(launchd, folder, is_root=True)


def test_a_service_that_is_allowed_says_so(tmp_path: Path) -> None:
    launchd = Started(folder_of(mac(Launchd(()), tmp_path)), checked(True), after_s=2.0)
    said = service.install(system=True, host=host_of(launchd, tmp_path))
    assert said.endswith(self_check.ALLOWED)
    assert launchd.waited_s < 5.0


def test_a_service_that_is_refused_says_so_with_the_way_to_the_cures(tmp_path: Path) -> None:
    launchd = Started(folder_of(mac(Launchd(()), tmp_path)), checked(False, denied_text(("bridge0", "en0"))))
    said = service.install(system=True, host=host_of(launchd, tmp_path))
    assert "macOS refuses every send of exod on bridge0, en0" in said
    assert said.endswith("exoctl doctor")


def test_what_an_earlier_life_found_out_does_not_count(tmp_path: Path) -> None:
    folder = folder_of(mac(Launchd(()), tmp_path))
    folder.mkdir(parents=True)
    (folder / "events.ndjson").write_bytes(checked(True))
    launchd = Started(folder, checked(False, "it is refused"))
    assert "it is refused" in service.install(system=True, host=host_of(launchd, tmp_path))


def test_a_service_that_says_nothing_is_not_waited_for_longer_than_a_minute(tmp_path: Path) -> None:
    launchd = Started(tmp_path, b'{"ts": 1.0, "type": "local_network.checked", "sub')
    said = service.install(system=True, host=host_of(launchd, tmp_path))
    assert said.endswith(self_check.NOT_KNOWN)
    assert launchd.waited_s < self_check.WITHIN_S + 5.0


@pytest.mark.parametrize("named", ["~/data", "{home}/data"])
def test_the_log_is_looked_for_where_the_configuration_has_it(tmp_path: Path, named: str) -> None:
    home = mac(Launchd(()), tmp_path).home
    config = tmp_path / "exod.toml"
    config.write_text(f'[node]\ndata_dir = "{named.format(home=home)}"\n')
    launchd = Started(home / "data", checked(True))
    assert service.install(system=True, config=config, host=host_of(launchd, tmp_path)).endswith(self_check.ALLOWED)


def test_an_agent_is_not_waited_for(tmp_path: Path) -> None:
    launchd = Started(tmp_path)
    service.install(host=mac(launchd, tmp_path))
    assert launchd.waited_s == 0.0
