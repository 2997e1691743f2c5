"""The platform of this host where it is Linux: real sockets, real stamps, a real netlink."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest

from exod.model import Kind, PathEnds
from exod.platform.commands import run_command
from exod.platform.linux import Linux
from exod.platform.routes import path_source, route_source
from exod.platform.system import ANCILLARY_BYTES
from exod.platform.this_host import current

SO_BINDTODEVICE = 25

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's own sockets and files")


def test_this_host_has_the_platform_of_linux() -> None:
    assert current().system == "linux"
    assert current() is current()


def test_loopback_is_known_by_its_type() -> None:
    assert Linux().classify("lo", ["127.0.0.1"]).kind is Kind.LOOPBACK


def test_an_interface_that_is_gone_is_classified_without_an_error(tmp_path: Path) -> None:
    assert Linux(sysfs=tmp_path).classify("gone0", []).kind is Kind.OTHER


def test_sysfs_is_read_into_facts(tmp_path: Path) -> None:
    port = tmp_path / "enp3s0"
    (port / "device").mkdir(parents=True)
    (port / "type").write_text("1\n")
    bridge = tmp_path / "br0"
    (bridge / "bridge").mkdir(parents=True)
    (bridge / "brif" / "enp3s0").mkdir(parents=True)
    (bridge / "type").write_text("1\n")
    linux = Linux(sysfs=tmp_path)
    assert linux.classify("enp3s0", []).kind is Kind.ETHERNET
    assert linux.classify("br0", []).kind is Kind.ETHERNET


def test_the_kernel_stamps_a_datagram_when_it_arrives_and_not_when_it_is_read() -> None:
    linux = Linux()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        linux.enable_receive_stamps(receiver)
        # The kernel begins to stamp what arrives a moment after the first socket of the machine asked for it.
        for _ in range(20):
            sender.sendto(b"first", receiver.getsockname())
            receiver.recv(64)
            time.sleep(0.005)
        before = time.monotonic()
        sender.sendto(b"probe", receiver.getsockname())
        after = time.monotonic()
        time.sleep(0.05)
        _, ancillary, flags, _ = receiver.recvmsg(64, ANCILLARY_BYTES)
        stamp = linux.receive_stamp(ancillary, time.monotonic())
    assert not flags & socket.MSG_CTRUNC
    assert stamp is not None
    assert before - 0.001 <= stamp <= after + 0.02  # the read came 0.05 s after


def test_a_datagram_without_a_stamp_has_none() -> None:
    assert Linux().receive_stamp([], time.monotonic()) is None


def test_a_socket_stays_on_its_interface() -> None:
    linux = Linux()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        linux.bind_to_interface(sock, "lo")
        assert sock.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
        with pytest.raises(OSError, match="No such device"):
            linux.bind_to_interface(sock, "gone0")


def test_the_route_source_is_the_address_an_unbound_connection_leaves_from() -> None:
    assert route_source("127.0.0.1") == "127.0.0.1"
    assert route_source("127.8.8.8") is not None
    assert route_source("not an address") is None


def test_a_bound_socket_leaves_from_its_own_address_or_not_at_all() -> None:
    linux = Linux()
    assert path_source(linux, PathEnds("lo", "127.0.0.1", "127.0.0.1")) == "127.0.0.1"
    assert path_source(linux, PathEnds("lo", "127.0.0.9", "127.0.0.1")) == "127.0.0.9", "an alias leaves, too"
    assert path_source(linux, PathEnds("gone0", "127.0.0.1", "127.0.0.1")) is None
    assert path_source(linux, PathEnds("lo", "192.0.2.1", "127.0.0.1")) is None, "the address is gone"


def test_where_nothing_may_be_bound_the_route_table_is_asked() -> None:
    class Forbidden(Linux):
        def bind_to_interface(self, sock: socket.socket, interface: str) -> None:
            raise PermissionError

    assert path_source(Forbidden(), PathEnds("lo", "127.0.0.9", "127.0.0.1")) == "127.0.0.1"


def test_netlink_hands_out_a_socket_that_does_not_block() -> None:
    sock = Linux().open_change_socket()
    assert sock is not None
    with sock, pytest.raises(BlockingIOError):
        sock.recv(1)


@pytest.mark.anyio
async def test_it_tells_no_receptacles_and_has_nothing_to_ask() -> None:
    linux = Linux()
    assert await linux.thunderbolt() == ()
    assert not await linux.refresh()


def test_memory_is_what_the_host_has() -> None:
    assert Linux().memory_mib() > 64


def test_a_worker_sees_one_gpu_unless_the_user_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Linux().worker_environment() == {"CUDA_VISIBLE_DEVICES": "0"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert Linux().worker_environment() == {}


@pytest.mark.anyio
async def test_a_command_answers_or_gives_none() -> None:
    assert await run_command(("/bin/echo", "en0")) == "en0\n"
    assert await run_command(("/bin/false",)) is None
    assert await run_command(("/no/such/tool",)) is None


@pytest.mark.anyio
async def test_a_command_that_hangs_is_killed_at_its_deadline() -> None:
    started = time.monotonic()
    assert await run_command(("/bin/sleep", "60"), deadline_s=0.1) is None
    assert time.monotonic() - started < 30
