"""The client of the control socket against servers that are no daemon, or a daemon that is not well."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exod.cli.base import client
from exod.cli.base.client import DaemonClient, NoDaemonError, SilentDaemonError
from exod.daemon_api.shapes import Readiness
from exod.errors import ExitCode, ExodError, RequestError

Talk = Callable[[socket.socket], None]


@contextmanager
def answering(path: Path, talk: Talk) -> Iterator[None]:
    """One connection is taken, and handed to `talk` in a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            talk(connection)

    thread = threading.Thread(target=serve, name="server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.close()
        thread.join(timeout=20)
        assert not thread.is_alive()


def saying(data: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(data)

    return talk


def until_the_client_leaves(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def test_an_answer_in_pieces_is_put_together(tmp_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        for byte in b'{"v":1,"id":1,"result":{"ready":true},"end":true}\n':
            connection.sendall(bytes([byte]))

    with answering(tmp_path / "s", talk), DaemonClient(tmp_path / "s") as daemon:
        assert daemon.ask("ready", Readiness).ready


def test_a_daemon_that_says_nothing_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(tmp_path / "s", until_the_client_leaves), DaemonClient(tmp_path / "s") as daemon:
        with pytest.raises(SilentDaemonError, match="has said nothing for"):
            daemon.raw("status", deadline_s=0.05)
        assert SilentDaemonError.exit_code is ExitCode.TIMED_OUT


def test_a_daemon_that_goes_away_is_said_so(tmp_path: Path) -> None:
    with (
        answering(tmp_path / "s", saying(b'{"v":1,')),
        DaemonClient(tmp_path / "s") as daemon,
        pytest.raises(NoDaemonError, match="has closed the connection"),
    ):
        daemon.raw("status")


@pytest.mark.parametrize("data", [b"hello\n", b"{}x\n", b'{"v":1,"id":1,"result":{"ready":3},"end":true}\n'])
def test_what_is_not_understood_is_one_line_and_no_traceback(tmp_path: Path, data: bytes) -> None:
    with answering(tmp_path / "s", saying(data)), DaemonClient(tmp_path / "s") as daemon:
        with pytest.raises(ExodError, match="does not understand") as caught:
            daemon.ask("ready", Readiness)
        assert caught.value.exit_code is ExitCode.INTERNAL


def test_an_answer_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_LINE_BYTES", 1000)

    def talk(connection: socket.socket) -> None:
        try:
            for _ in range(1000):
                connection.sendall(b"x" * 1000)
        except OSError:
            pass

    with (
        answering(tmp_path / "s", talk),
        DaemonClient(tmp_path / "s") as daemon,
        pytest.raises(ExodError, match="a line without end"),
    ):
        daemon.raw("status")


@pytest.mark.parametrize(("number", "code"), [(4, ExitCode.DEGRADED), (77, ExitCode.INTERNAL)])
def test_an_error_carries_its_code_and_exit_code(tmp_path: Path, number: int, code: ExitCode) -> None:
    data = b'{"v":1,"id":1,"error":{"code":"x","text":"y","exit_code":%d},"end":true}\n' % number
    with answering(tmp_path / "s", saying(data)), DaemonClient(tmp_path / "s") as daemon:
        with pytest.raises(RequestError) as caught:
            daemon.raw("status")
        assert (caught.value.code, str(caught.value), caught.value.exit_code) == ("x", "y", code)


def test_where_nobody_listens_the_start_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match="start it with: exod run --config x"):
        DaemonClient(tmp_path / "s", "exod run --config x")
    (tmp_path / "s").write_text("no socket")
    with pytest.raises(NoDaemonError):
        DaemonClient(tmp_path / "s")
