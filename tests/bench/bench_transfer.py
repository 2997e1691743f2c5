"""A model of 1 GB from one host to another over the lab's cable, beside a plain socket copy of the same file.

Both write a file; the plain copy neither encrypts nor checks. Counted is the time from the first byte to the file
under its final name. The target: 0.8 of what the plain copy moves a second, so 1.25 times its time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from exod.model_transfer.model_places import FileList, put_together, repository_folder
from exod.model_transfer.transfer_messages import OfferedFile
from exoengine.embedded import model_folder
from tests.bench.rows import Row
from tests.engine_service.stand_in_hub import COMMIT, MODEL
from tests.lab.cluster import Cluster
from tests.lab.reading import Status
from tests.lab.topology import Host, Lab

ROUNDS = 4
"""One after the other in turn, so that both meet the machine's quiet moments."""

BYTES = 1_000_000_000
WITHIN_S = 300.0
PORT = 5999
ENGINE_OFF = {"engine": {"enabled": False}, "mqtt": {"broker": "off"}}

RECEIVE = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
sock, _ = server.accept()
buffer = memoryview(bytearray(1 << 20))
with open(sys.argv[3], "wb", buffering=0) as out:
    while count := sock.recv_into(buffer):
        out.write(buffer[:count])
"""
SEND = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
buffer = memoryview(bytearray(1 << 20))
with open(sys.argv[3], "rb", buffering=0) as file:
    while count := file.readinto(buffer):
        sock.sendall(buffer[:count])
"""


def run() -> list[Row]:
    with Lab(2) as lab:
        cluster = Cluster(lab, config=ENGINE_OFF)
        first, second = cluster.nodes
        for node in cluster.nodes:
            node.environment = {"HF_HOME": str(node.folder / "hf"), "HF_HUB_OFFLINE": "1"}
        big = _prepare(first.folder / "hf" / "hub")
        cluster.start()
        cluster.wait_until(_on_the_cable, WITHIN_S, "both use the cable")
        plain_s, pulled_s, whole_s = [], [], []
        for _ in range(ROUNDS):
            plain_s.append(_plain(first.host, second.host, big, second.folder / "plain"))
            file_s, command_s = _pull(second.folder / "hf" / "hub", cluster, big.name)
            pulled_s.append(file_s)
            whole_s.append(command_s)
            shutil.rmtree(second.folder / "hf")
    return [
        Row(
            f"1 GB between two hosts, plain socket copy, best of {ROUNDS}", min(plain_s), "s", None, tuple(plain_s)
        ),
        Row("the same by exoctl model pull, the file", min(pulled_s), "s", None, tuple(pulled_s)),
        Row("the same, the whole command", min(whole_s), "s"),
        Row("the file by pull, in times of the plain copy", min(pulled_s) / min(plain_s), "", 1 / 0.8),
    ]


def _on_the_cable(statuses: list[Status]) -> bool:
    links = [link for status in statuses for link in status["links"]]
    used = [path["kind"] for link in links for path in link["paths"] if path["selected"] and link["agreed"]]
    return used == ["thunderbolt"] * len(statuses)


def _prepare(cache: Path) -> Path:
    place = repository_folder(cache, MODEL)
    (place / "blobs").mkdir(parents=True)
    files = []
    contents = {path.name: path.read_bytes() for path in Path(model_folder("embedded:count")).iterdir()}
    header = b'{"extra":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (BYTES, BYTES)
    contents["model-extra.safetensors"] = len(header).to_bytes(8, "little") + header + os.urandom(BYTES)
    for name, content in contents.items():
        etag = hashlib.sha256(content).hexdigest()
        (place / "blobs" / etag).write_bytes(content)
        files.append(OfferedFile(name, len(content), etag))
    put_together(place, FileList(MODEL, COMMIT, tuple(files)))
    return place / "blobs" / files[-1].etag


def _plain(source: Host, target: Host, file: Path, to: Path) -> float:
    to.unlink(missing_ok=True)
    address = target.address("bridge0")
    receiver = target.popen([sys.executable, "-c", RECEIVE, address, str(PORT), to], stdout=subprocess.PIPE)
    receiver.stdout.readline()
    began = time.monotonic()
    source.run([sys.executable, "-c", SEND, address, str(PORT), file], timeout_s=WITHIN_S)
    receiver.wait(WITHIN_S)
    return time.monotonic() - began


def _pull(cache: Path, cluster: Cluster, etag: str) -> tuple[float, float]:
    """From the first byte to the final name, and the whole command."""
    second = cluster.node(2)
    blob = repository_folder(cache, MODEL) / "blobs" / etag
    part = Path(f"{blob}.exod-part")
    began = time.monotonic()
    argv = [Path(sys.executable).parent / "exoctl", "--socket", second.socket, "model", "pull", MODEL, "--all"]
    command = second.host.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not part.exists() and not blob.exists():
        time.sleep(0.005)
    first_byte = time.monotonic()
    while not blob.exists():
        time.sleep(0.005)
    last_byte = time.monotonic()
    assert command.wait(WITHIN_S) == 0
    return last_byte - first_byte, time.monotonic() - began
