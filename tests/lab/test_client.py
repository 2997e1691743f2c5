"""The lab's client against a server that says known things: what a test is told is what was sent, and when."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.chat import chat_body, numbers, request
from tests.lab.cluster import Cluster
from tests.lab.node import API_PORT, KINDS, Node, new_cluster_key, toml, wait_for
from tests.lab.reading import Status, agreed_on, can_serve, layers_cover, members, path_over, selected_path
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

# Answers a chat with 1, 2, 3 … as asked, a keep-alive in the middle, 50 ms between tokens; and breaks if told.
SERVER = """
import http.server, json, re, time
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"schema": 1}')
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][0]["content"]
        if prompt == "refuse":
            self.send_response(503); self.end_headers()
            self.wfile.write(b'{"error": {"code": "not_ready", "message": "no"}}'); return
        self.send_response(200); self.end_headers()
        for number in range(1, 6):
            chunk = {"choices": [{"delta": {"content": f"{number}, "}, "finish_reason": None}]}
            self.say("data: " + json.dumps(chunk)); time.sleep(0.05)
            if number == 3:
                self.say(": still here"); time.sleep(0.2)
                if prompt == "break": return
        self.say('data: {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"total_tokens": 9}}')
        self.say("data: [DONE]")
    def say(self, line): self.wfile.write(line.encode() + b"\\r\\n\\r\\n"); self.wfile.flush()
http.server.ThreadingHTTPServer(("127.0.0.1", %d), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab(2) as lab:
        node = Node(lab.host(1), lab.folder, new_cluster_key())
        server = lab.host(1).popen([sys.executable, "-c", SERVER % API_PORT])
        wait_for(node.poll_status, 20.0, "the server answers")
        yield node
        server.kill()
        server.wait()


def test_a_stream_is_read_with_the_time_of_each_token(node: Node) -> None:
    stream = node.stream_chat("count from 1 to 5")
    stream.wait_for_numbers(2, 5.0)
    assert numbers(stream.result(10.0)) == [1, 2, 3, 4, 5]
    assert (stream.finish_reason, stream.usage, len(stream.comments)) == ("stop", {"total_tokens": 9}, 1)
    gaps_s = stream.gaps_s()
    assert len(gaps_s) == 4
    assert max(gaps_s) == gaps_s[2] > 0.2
    assert gaps_s[0] > 0.04


def test_a_broken_or_refused_stream_is_a_failure_with_its_story(node: Node) -> None:
    with pytest.raises(AssertionError, match=r"did not end well.*text '1, 2, 3, '"):
        node.stream_chat("break").result(10.0)
    refused = node.stream_chat("refuse")
    with pytest.raises(AssertionError, match="not_ready"):
        refused.result(10.0)
    assert refused.status == 503


def test_a_server_is_reached_from_inside_its_own_host_alone(node: Node) -> None:
    assert request(node.host, API_PORT, "GET", "/").json() == {"schema": 1}
    with Lab(1) as lab, pytest.raises(OSError, match="refused"):
        request(lab.host(1), API_PORT, "GET", "/")


def test_the_config_and_key_are_as_the_contract_wants_them(node: Node) -> None:
    config = tomllib.loads(node.config_file.read_text())
    assert config["mesh"]["kinds"] == KINDS
    assert config["node"] == {"name": "studio1", "data_dir": str(node.data_dir)}
    assert toml({"a": {"b": [1, "x"], "c": True, "d": 0.5}}) == '[a]\nb = [1, "x"]\nc = true\nd = 0.5\n'
    key_file: Path = node.data_dir / "cluster.key"
    assert len(key_file.read_text().strip()) == 64
    assert key_file.stat().st_mode & 0o777 == 0o600


def test_a_wait_in_vain_shows_what_the_daemons_said() -> None:
    with Lab(2) as lab:
        cluster = Cluster(lab, config={"mesh": {"no_such_key": 1}})
        cluster.start()
        with pytest.raises(AssertionError, match=r"(?s)studio1.* ended.*the last of its log"):
            cluster.wait_agreed("thunderbolt", 60.0)


def test_a_count_is_given_room_for_all_its_tokens() -> None:
    assert chat_body("count from 1 to 900", stream=True)["max_tokens"] >= 900 * 4
    assert "max_tokens" not in chat_body("hello", stream=True)


def a_status(me: str, peer: str, kind: str, *, agreed: bool = True, plan: str = "f00") -> Status:
    interface = next(name for name, known in KINDS.items() if known == kind)
    path = {"id": "p1", "interface": interface, "kind": kind, "state": "up", "selected": True}
    ids = {"studio1": "a", "studio2": "b"}
    return {
        "node": {"id": ids[me], "name": me},
        "nodes": [{"id": ids[name], "name": name, "state": "up"} for name in ("studio1", "studio2")],
        "links": [{"peer_name": peer, "agreed": agreed, "selected": "p1", "paths": [path]}],
        "mesh": {"state": "agreed", "epoch": [7, 1], "plan": plan, "edges": [{"kind": kind}]},
        "engine": {
            "state": "ready",
            "parallel": "pipeline",
            "ranks": [
                {"node": "a", "rank": 0, "layers": [0, 5]},
                {"node": "b", "rank": 1, "layers": [5, 8]},
            ],
        },
    }


def test_agreement_is_what_both_ends_say() -> None:
    first, second = a_status("studio1", "studio2", "vpn"), a_status("studio2", "studio1", "vpn")
    assert agreed_on([first, second], "vpn")
    assert not agreed_on([first, second], "thunderbolt")
    assert not agreed_on([first, a_status("studio2", "studio1", "vpn", agreed=False)], "vpn")
    assert not agreed_on([first, a_status("studio2", "studio1", "vpn", plan="0ff")], "vpn")
    assert members(first) == {"studio1", "studio2"}
    assert selected_path(first, "studio2") == path_over(first, "studio2", "utun4")
    assert path_over(first, "studio2", "en0") is None


def test_layers_have_to_cover_the_model_once() -> None:
    status = a_status("studio1", "studio2", "vpn")
    assert can_serve(status)
    for first, second in [([0, 5], [6, 8]), ([0, 5], [4, 8]), ([1, 5], [5, 8]), ([0, 8], [8, 8])]:
        status["engine"]["ranks"][0]["layers"], status["engine"]["ranks"][1]["layers"] = first, second
        assert not layers_cover(status)
