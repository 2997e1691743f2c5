"""Bytes that somebody else wrote, or that a disk damaged, are an error of the room that reads them and nothing
more.
"""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exod.config.settings import load
from exod.data_files import Damaged
from exod.diagnostics.event_log import EVENTS_FILE, EventLog
from exod.engine_service.worker_process import COMMAND
from exod.errors import ConfigError, ExodError, RequestError, TrustError
from exod.http.dialects.openai_requests import read_chat, read_completion
from exod.identity import IDENTITY_FILE, STATE_FILE, claim
from exod.mqtt import publish_schedule
from exod.peers.peer_addresses import FILE as PEERS_FILE
from exod.peers.peer_addresses import PeerBook
from exod.peers.peer_messages import FrameError, take
from exod.peers.trust import node_key, read_key
from exod.platform.crash_parser import CrashTextError, parse_ips
from exoengine.decoding import DecodingError, from_json, from_msgpack
from exoengine.protocol import ProtocolError, decode_from_worker, decode_to_worker
from exoengine.ring.message_ring import RingLostError
from exoengine.ring.message_ring import decode as decode_ring_message
from tests.test_architecture import DAEMON, ENGINE, ROOT, modules, where

BAD_JSON = [
    b"",
    b"\x00",
    b"\xff",
    b'"\xff"',
    b"{",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"a":' + b"[" * 100_000,
    b"1" * 100_000,
    b"1e999",
    b"NaN",
    b'"\\ud800"',
    b"[]",
    b"7",
    b"null",
]
BAD_MSGPACK = [
    b"",
    b"\xc1",
    b"\xa1\xff",
    b"\x81\xa1\xff\x01",
    b"\x91" * 100_000,
    b"\x81\xa1a" * 100_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x81\x80\x01",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xcf" + b"\xff" * 8,
]


class Shape(msgspec.Struct):
    number: int
    rest: Any = None


def short(value: object) -> str:
    return repr(value)[:24]


@pytest.mark.parametrize("data", BAD_JSON, ids=short)
def test_whatever_is_wrong_with_json_is_one_error(data: bytes) -> None:
    with pytest.raises(DecodingError) as caught:
        from_json(data, Shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", BAD_MSGPACK, ids=short)
def test_whatever_is_wrong_with_messagepack_is_one_error(data: bytes) -> None:
    with pytest.raises(DecodingError):
        from_msgpack(data, Shape)


@pytest.mark.parametrize("data", [*BAD_JSON, b'{"messages":"\xff"}', b'{"prompt":"\xff"}'], ids=short)
@pytest.mark.parametrize("read", [read_chat, read_completion])
def test_a_bad_body_is_a_refused_request(read: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(RequestError):
        read(data)


@pytest.mark.parametrize("data", BAD_JSON, ids=short)
def test_a_bad_crash_report_and_a_bad_mqtt_payload_are_passed_over(data: bytes) -> None:
    with pytest.raises(CrashTextError):
        parse_ips(data.decode("utf-8", "replace"))
    assert publish_schedule._speaker_in(data) is None


@pytest.mark.parametrize("data", BAD_MSGPACK, ids=short)
def test_a_bad_frame_ends_its_connection(data: bytes) -> None:
    with pytest.raises(FrameError):
        take(bytearray(len(data).to_bytes(4, "big") + data))
    for decode in (decode_to_worker, decode_from_worker):
        with pytest.raises(ProtocolError):
            decode(data)
    with pytest.raises(RingLostError):
        decode_ring_message(data, Shape)


# --- the data folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", BAD_JSON, ids=short)
def test_a_damaged_identity_is_set_aside_and_makes_a_new_node(tmp_path: Path, data: bytes) -> None:
    first = claim(tmp_path)
    first.release()
    (tmp_path / IDENTITY_FILE).write_bytes(data)
    (tmp_path / STATE_FILE).write_bytes(data)
    second = claim(tmp_path)
    second.release()
    assert second.id != first.id
    assert second.incarnation > 0
    assert [Path(damage.file).name for damage in second.damaged] == [IDENTITY_FILE, STATE_FILE]
    for damage in second.damaged:
        assert Path(damage.moved_to).read_bytes() == data
    third = claim(tmp_path)
    third.release()
    assert (third.id, third.damaged) == (second.id, ())


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["a folder", "a pipe"])
def test_what_is_no_file_in_the_place_of_ours_is_one_line_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    for name in (IDENTITY_FILE, STATE_FILE):
        folder = tmp_path / name
        folder.mkdir()
        make(folder / name)
        with pytest.raises(ExodError, match=str(folder)):
            claim(folder)
    for name in ("cluster.key", "node.key"):
        make(tmp_path / name)
        with pytest.raises(TrustError, match=name):
            read_key(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"\xff", b"a" * 63, b"a" * 65, b"g" * 64], ids=short)
def test_a_damaged_node_key_is_set_aside_and_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "node.key"
    file.touch(0o600)
    file.write_bytes(content)
    told: list[Damaged] = []
    fresh = node_key(tmp_path, told.append)
    assert [one.moved_to for one in told] == [f"{file}.damaged"]
    assert (tmp_path / "node.key.damaged").read_bytes() == content
    assert node_key(tmp_path, told.append) == fresh
    assert len(told) == 1


def test_a_folder_in_the_place_of_the_node_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.key").mkdir()
    with pytest.raises(TrustError, match=r"node\.key: cannot be replaced"):
        node_key(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        *BAD_JSON,
        b'{"a":{"name":"x","port":0,"addresses":[],"seen":1}}',
        b'{"a":{"name":"x","port":1,"addresses":["::1%evil"],"seen":1}}',
    ],
    ids=short,
)
def test_a_damaged_book_of_peers_is_set_aside(tmp_path: Path, data: bytes) -> None:
    (tmp_path / PEERS_FILE).write_bytes(data)
    book = PeerBook(tmp_path)
    assert book.entries() == []
    assert [Path(damage.moved_to).read_bytes() for damage in book.damaged] == [data]
    assert not (tmp_path / PEERS_FILE).exists()


def test_a_damaged_line_costs_no_other_event(tmp_path: Path) -> None:
    good = b'{"ts":1.0,"type":"node.down","subject":"a","data":{}}'
    (tmp_path / EVENTS_FILE).write_bytes(b"\n".join([good, *BAD_JSON, good]))
    assert len(EventLog(tmp_path).recent("node.down", 0.0)) == 2


@pytest.mark.parametrize("data", [b"\xff", b"a = " + b"[" * 100_000, b"\x00", b"[" * 1000])
def test_a_bad_configuration_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "exod.toml").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "exod.toml", {})
    assert "\n" not in str(caught.value)


# --- nobody decodes or starts an interpreter in another way -------------------------------------------------


def test_everything_is_decoded_in_one_place() -> None:
    """msgspec raises more than its own errors: a direct caller misses some of them."""
    for path in [*modules(DAEMON), *modules(ENGINE)]:
        if path.name == "decoding.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                assert name not in {
                    "msgspec.json.decode",
                    "msgspec.msgpack.decode",
                    "msgspec.DecodeError",
                    "_decoder.decode",
                    "decoder.decode",
                }, where(path, node.lineno)


def test_no_interpreter_that_we_start_imports_from_the_current_folder() -> None:
    for path in [*modules(DAEMON), *modules(ENGINE), *modules(ROOT / "launchd"), *modules(ROOT / "mlx_patches")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Tuple | ast.List) and len(node.elts) > 1:
                first, second = map(ast.unparse, node.elts[:2])
                if first in ("sys.executable", "str(self.python)"):
                    assert second in ("'-P'", "'-I'"), where(path, node.lineno)
    assert "$(BIN)/python -P -m exod run" in (ROOT / "Makefile").read_text()


def test_a_worker_in_a_strangers_folder_runs_none_of_its_code(tmp_path: Path) -> None:
    for name in ("msgspec.py", "exoengine.py", "json.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    done = subprocess.run([*COMMAND, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not (tmp_path / "ran").exists()
    assert "--socket" in done.stdout


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "\u202eturned", "\ud800"])
def test_no_error_repeats_what_a_terminal_obeys(text: str) -> None:
    """Texts of errors repeat what somebody sent, wherever they are written."""
    error = RequestError("invalid_value", f"'{text}' is not allowed")
    assert error.text.isprintable()
    assert str(error) == error.text
