"""A hub on loopback that answers as huggingface.co does to huggingface_hub, and misbehaves where it is told to."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

MODEL = "maker/tiny"
COMMIT = "a" * 40
PIECE = 16 * 1024


@dataclass
class StandInHub:
    """`files` by name. What it does wrong stands in the other fields, and may change while it runs."""

    files: dict[str, bytes]
    url: str = ""
    piece_s: float = 0.0
    """A pause after each piece of 16 KiB."""
    silent_after: int | None = None
    """Bytes of a weights file after which nothing comes, and the connection stays open. 0: not even a header."""
    cut_after: int | None = None
    """Bytes of a weights file in one answer after which the connection is closed."""
    added_size: int = 0
    """The listing says so many bytes more for weights than there are."""
    refuse: tuple[int, str] | None = None
    """Status and X-Error-Code of every answer that carries a file."""
    missing: bool = False
    damaged: bool = False
    """Weights are sent with other bits than announced."""
    no_ranges: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request, with the range where it has one."""
    sent: dict[str, int] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def etag(self, name: str) -> str:
        content = self.files[name]
        if name.endswith(".safetensors"):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def size(self, name: str) -> int:
        return len(self.files[name]) + (self.added_size if name.endswith(".safetensors") else 0)

    def sibling(self, name: str) -> dict[str, object]:
        entry: dict[str, object] = {"rfilename": name, "size": self.size(name), "blobId": self.etag(name)[:40]}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"sha256": self.etag(name), "size": self.size(name), "pointerSize": 134}
        return entry

    def tree_entry(self, name: str) -> dict[str, object]:
        entry: dict[str, object] = {
            "type": "file", "path": name, "size": self.size(name), "oid": self.etag(name)[:40],
        }  # fmt: skip
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": self.etag(name), "size": self.size(name), "pointerSize": 134}
        return entry


def model_files(folder: Path, weights_bytes: int = 0) -> dict[str, bytes]:
    """Those of a folder; with `weights_bytes` a further file of weights, so that there is something to wait for."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    if weights_bytes:
        extra = {"dtype": "U8", "shape": [weights_bytes], "data_offsets": [0, weights_bytes]}
        header = json.dumps({"extra": extra})
        content = bytes(range(251)) * (weights_bytes // 251 + 1)
        files["model-extra.safetensors"] = (
            len(header).to_bytes(8, "little") + header.encode() + content[:weights_bytes]
        )
    return files


@contextmanager
def serving(hub: StandInHub, address: str = "127.0.0.1") -> Iterator[StandInHub]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://{address}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path + (f" {self.headers['Range']}" if self.headers["Range"] else "")))
        if hub.silent_after == 0:
            hub.ended.wait()
            self.close_connection = True
            return
        if hub.missing or not path.startswith((f"/api/models/{MODEL}", f"/{MODEL}/resolve/")):
            self._refuse(404 if hub.missing else 401, "RepoNotFound")
        elif path.startswith("/api/models/"):
            self._list(path)
        elif hub.refuse is not None:
            self._refuse(*hub.refuse)
        else:
            self._file(path.rpartition("/")[2], with_body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, path: str) -> None:
        names = sorted(self.hub.files)
        if "/tree/" in path:
            body = json.dumps([self.hub.tree_entry(name) for name in names])
        else:
            siblings = [self.hub.sibling(name) for name in names]
            body = json.dumps({"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": siblings})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def _file(self, name: str, with_body: bool) -> None:
        hub = self.hub
        if name not in hub.files:
            return self._refuse(404, "EntryNotFound")
        content, start = hub.files[name], _range_start(self.headers)
        if start and start >= len(content) and not hub.no_ranges:
            return self._refuse(416, "")
        goes_on = bool(start) and not hub.no_ranges
        rest = content[start:] if goes_on else content
        self.send_response(206 if goes_on else 200)
        if goes_on:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hub.etag(name)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if with_body:
            self._send(name, rest, is_weights=name.endswith(".safetensors"))
        return None

    def _send(self, name: str, rest: bytes, is_weights: bool) -> None:
        hub = self.hub
        if is_weights and hub.damaged:
            rest = bytes(len(rest))
        done = 0
        while done < len(rest):
            piece = rest[done : done + PIECE]
            if is_weights and hub.silent_after is not None and done + len(piece) > hub.silent_after:
                hub.ended.wait()
                self.close_connection = True
                return
            if is_weights and hub.cut_after is not None and done + len(piece) > hub.cut_after:
                self.close_connection = True
                return
            try:
                self.wfile.write(piece)
            except OSError:
                self.close_connection = True
                return
            done += len(piece)
            hub.sent[name] = hub.sent.get(name, 0) + len(piece)
            if hub.piece_s:
                time.sleep(hub.piece_s)


def _range_start(headers: Message) -> int:
    wanted = str(headers.get("Range", ""))
    return int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted.startswith("bytes=") else 0
