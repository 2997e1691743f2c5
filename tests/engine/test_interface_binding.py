"""How a socket is bound to an interface on either system, seen from the option that is set."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest

from exoengine import interface_binding
from exoengine.interface_binding import bind_on_linux, bind_on_macos, bind_to_interface, bind_where_allowed


class Recording:
    """A socket that remembers its options, or refuses them."""

    def __init__(self, refuse: int = 0) -> None:
        self.options: list[tuple[int, int, bytes]] = []
        self._refuse = refuse

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        if self._refuse:
            raise OSError(self._refuse, "refused")
        self.options.append((level, option, value))


@pytest.fixture(autouse=True)
def indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nametoindex", {"bridge0": 14}.__getitem__)


def test_macos_takes_the_interfaces_number() -> None:
    sock: Any = Recording()
    bind_on_macos(sock, "bridge0")
    assert sock.options == [(socket.IPPROTO_IP, 25, struct.pack("=I", 14))]


def test_linux_takes_its_name() -> None:
    sock: Any = Recording()
    bind_on_linux(sock, "bridge0")
    assert sock.options == [(socket.SOL_SOCKET, 25, b"bridge0\0")]


@pytest.mark.parametrize(("system", "level"), [("darwin", socket.IPPROTO_IP), ("linux", socket.SOL_SOCKET)])
def test_each_system_gets_its_own(monkeypatch: pytest.MonkeyPatch, system: str, level: int) -> None:
    monkeypatch.setattr(interface_binding.sys, "platform", system)
    sock: Any = Recording()
    bind_to_interface(sock, "bridge0")
    assert [option[0] for option in sock.options] == [level]


def test_no_name_binds_nothing() -> None:
    sock: Any = Recording()
    bind_to_interface(sock, "")
    assert sock.options == []


def test_only_a_missing_right_is_passed_over() -> None:
    forbidden: Any = Recording(errno.EPERM)
    bind_where_allowed(forbidden, "bridge0")
    gone: Any = Recording(errno.ENODEV)
    with pytest.raises(OSError, match="refused"):
        bind_where_allowed(gone, "bridge0")
