"""The process that makes the connections MLX's ring waits for."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from exoengine.ring.group import Connector

SOON_S = 3.0
"""Milliseconds are usual; less than any deadline of whoever waits for the connection."""


@pytest.fixture
def connector() -> Iterator[Connector]:
    made = Connector()
    yield made
    made.close()


def listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(SOON_S)
    return listener


def test_a_port_where_nobody_will_listen_is_given_up_for_the_next(connector: Connector) -> None:
    with listening() as closed:
        dead = closed.getsockname()[1]
    with listening() as listener:
        connector.connect(dead)
        connector.connect(listener.getsockname()[1])
        listener.accept()[0].close()


def test_it_waits_for_a_listener_and_lets_go_when_told(connector: Connector) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        connector.connect(bound.getsockname()[1])
        bound.settimeout(SOON_S)
        bound.listen(1)
        connection = bound.accept()[0]
        with connection:
            connection.settimeout(SOON_S)
            connector.connect(0)
            assert connection.recv(1) == b""
