"""An avahi daemon inside a host, with a message bus of its own: the second opinion on mDNS.

Decides how avahi runs apart from the machine's own.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.lab.node import wait_for
from tests.lab.topology import Host

NEEDED = ("avahi-daemon", "avahi-browse", "avahi-publish", "dbus-daemon")
STARTS_WITHIN_S = 20.0

BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
    <allow own="*"/><allow user="*"/>
  </policy>
</busconfig>
"""
AVAHI_CONFIG = "[server]\nhost-name={name}\nuse-ipv6=no\nratelimit-interval-usec=0\n"


def missing_tools() -> list[str]:
    """Commands of Debian's avahi-daemon, avahi-utils and dbus-daemon that are not installed."""
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    return [command for command in NEEDED if shutil.which(command, path=path) is None]


class Avahi:
    """A running avahi in `host`, for the body of a `with`."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder / f"avahi-{host.name}"
        self.bus = self.folder / "bus"
        self.log = self.folder / "log"
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        self.folder.mkdir()
        bus_config, avahi_config = self.folder / "bus.conf", self.folder / "avahi.conf"
        bus_config.write_text(BUS_CONFIG.format(socket=self.bus))
        avahi_config.write_text(AVAHI_CONFIG.format(name=self.host.name))
        try:
            self._start(["dbus-daemon", f"--config-file={bus_config}", "--nofork", "--nopidfile"])
            wait_for(self.bus.exists, STARTS_WITHIN_S, f"a message bus in {self.host.name}")
            # Its pid file and socket have fixed places: give it a /run/avahi-daemon that nobody else sees.
            # The namespace's mounts are private already, because `ip netns exec` makes them so.
            apart = "mkdir -p /run/avahi-daemon && mount -t tmpfs lab /run/avahi-daemon && exec "
            self._start(
                ["sh", "-c", f"{apart} avahi-daemon --no-drop-root --no-chroot --no-rlimits -f {avahi_config}"]
            )
            wait_for(self._answers, STARTS_WITHIN_S, f"avahi in {self.host.name}", every_s=0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STARTS_WITHIN_S)
        self._processes.clear()

    def _environment(self) -> dict[str, str]:
        return {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.bus}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

    def _start(self, argv: list[str]) -> None:
        with self.log.open("ab") as log:
            self._processes.append(self.host.popen(argv, env=self._environment(), stdout=log, stderr=log))

    def _answers(self) -> bool:
        argv = ["avahi-browse", "--all", "--terminate", "--parsable"]
        return self.host.run(argv, check=False, env=self._environment()).returncode == 0

    def browse(self, service: str) -> list[dict[str, str]]:
        """What is announced as `service` now, resolved: interface, name, host, address, port, text."""
        argv = ["avahi-browse", "--resolve", "--terminate", "--parsable", "--no-db-lookup", service]
        lines = self.host.run(argv, env=self._environment()).stdout.splitlines()
        fields = ("interface", "protocol", "name", "service", "domain", "host", "address", "port", "text")
        return [dict(zip(fields, line.split(";")[1:], strict=False)) for line in lines if line.startswith("=;")]

    def publish(self, name: str, service: str, port: int) -> subprocess.Popen[Any]:
        """Announces a service until the process returned is ended."""
        argv = ["avahi-publish", "--service", name, service, str(port)]
        return self.host.popen(argv, env=self._environment(), stdout=subprocess.DEVNULL)
