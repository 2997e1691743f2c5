"""What the page costs: how soon it is there, how soon it shows a cut, what open pages cost the daemon.

A mesh of two in the lab; the page runs in Chromium inside the first host. Viewers are plain readers of `/api/live`:
what a browser does with a state costs another process.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from tests.bench.bench_idle import processor_s, resident_mib
from tests.bench.rows import Row, summed_up
from tests.lab.cluster import Cluster
from tests.lab.node import API_PORT, Node, wait_for
from tests.lab.topology import Lab
from tests.pictures.camera import Camera

READY_WITHIN_S: Final = 120.0
SETTLED_S: Final = 20.0
"""First figures are published, links are probed as where nobody asks."""

LOADS: Final = 10
CUTS: Final = 3
VIEWERS: Final = 50
CALM_S: Final = 3.0
WATCHED_S: Final = 30.0
HEALS_WITHIN_S: Final = 90.0
PAGE: Final = f"http://127.0.0.1:{API_PORT}/"


def run() -> list[Row]:
    with Lab(2) as lab:
        cluster = Cluster(lab)
        cluster.start()
        cluster.wait_ready("thunderbolt", READY_WITHIN_S)
        time.sleep(SETTLED_S)
        rows = _viewers(cluster.nodes[0])
        camera = Camera(lab.host(1))
        try:
            return rows + _loads(camera) + _open_page(camera, cluster.nodes[0]) + _cuts(lab, cluster, camera)
        finally:
            camera.close()


def _loads(camera: Camera) -> list[Row]:
    """In milliseconds since the browser began to go there."""
    painted, shown = [], []
    script = (
        "const paint = performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0;"
        "return [paint, document.querySelectorAll('#picture .path').length ? performance.now() : 0]"
    )
    for _ in range(LOADS):
        camera.open("about:blank")
        camera.open(PAGE)
        paint = drawn = 0.0
        while not (paint and drawn):
            paint, drawn = camera.run(script)
        painted.append(paint)
        shown.append(drawn)
    return [*summed_up("first paint", painted, "ms"), *summed_up("mesh drawn", shown, "ms", p99=1000.0)]


def _open_page(camera: Camera, node: Node) -> list[Row]:
    """An open page of a browser, and nothing happens."""
    before, began = camera.figures(), time.monotonic()
    spent_s = processor_s(node.pid)
    time.sleep(WATCHED_S)
    elapsed_s = time.monotonic() - began
    after = camera.figures()
    busy_s = after["TaskDuration"] - before["TaskDuration"]
    return [
        Row("one open page: its tab, of a core", busy_s / elapsed_s * 100, "%"),
        Row("one open page: JavaScript heap", after["JSHeapUsedSize"] / 2**20, "MiB"),
        Row("one open page: the daemon, of a core", (processor_s(node.pid) - spent_s) / elapsed_s * 100, "%"),
    ]


WATCH = """
window.deadAt = 0;
const picture = document.querySelector("#picture");
new MutationObserver(() => {
  if (!window.deadAt && picture.textContent.includes("bridge0 dead")) window.deadAt = Date.now();
}).observe(picture, { childList: true, subtree: true });
"""


def _cuts(lab: Lab, cluster: Cluster, camera: Camera) -> list[Row]:
    """From the cut to the state that viewers are sent, and to the picture, as the page's own clock says."""
    told, drawn, after_told = [], [], []
    on_the_cable = "return document.querySelectorAll('.path.used.thunderbolt').length"
    camera.run(WATCH)
    with _first_dead(cluster.nodes[0]) as dead_at:
        for _ in range(CUTS):
            cluster.wait_agreed("thunderbolt", HEALS_WITHIN_S)
            wait_for(lambda: camera.run(on_the_cable), HEALS_WITHIN_S, "the page shows the cable in use")
            time.sleep(CALM_S)
            camera.run("window.deadAt = 0")
            dead_at.clear()
            began_at = time.time()
            lab.cable(1, 2).cut()
            camera.until("#picture", "bridge0 dead")
            drawn_at = camera.run("return window.deadAt") / 1000
            told.append((dead_at[0] - began_at) * 1000)
            drawn.append((drawn_at - began_at) * 1000)
            after_told.append((drawn_at - dead_at[0]) * 1000)
            lab.restore()
    return [
        Row(f"a cut, until its state is sent, worst of {CUTS}", max(told), "ms", 1000.0, tuple(told)),
        Row("a cut, until the picture shows it, worst", max(drawn), "ms", 1000.0, tuple(drawn)),
        Row("from the state to the picture, worst", max(after_told), "ms", None, tuple(after_told)),
    ]


@contextmanager
def _first_dead(node: Node) -> Iterator[list[float]]:
    """A viewer that notes when states came in which bridge0 is dead, in Unix seconds."""
    found: list[float] = []
    with node.host.socket() as connection:
        connection.connect(("127.0.0.1", API_PORT))
        connection.sendall(b"GET /api/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

        def read() -> None:
            rest = b""
            while data := connection.recv(1 << 16):
                *whole, rest = (rest + data).split(b"\n\n")
                for block in whole:
                    if b"event: state" in block and _is_dead(
                        json.loads(block.partition(b"data: ")[2].split(b"\n")[0])
                    ):
                        found.append(time.time())

        thread = threading.Thread(target=read, name="viewer of cuts")
        thread.start()
        try:
            yield found
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            thread.join()


def _is_dead(state: dict[str, Any]) -> bool:
    paths = [path for link in state["status"]["links"] for path in link["paths"]]
    return any(path["interface"] == "bridge0" and path["state"] == "dead" for path in paths)


def _viewers(node: Node) -> list[Row]:
    quiet = _share(node)
    with _watching(node, VIEWERS) as taken:
        before = taken[0]
        busy = _share(node)
        received = taken[0] - before
        memory = resident_mib(node.pid)
    return [
        Row("no viewer: the daemon, of a core", quiet, "%"),
        Row(f"{VIEWERS} viewers: the daemon, of a core", busy, "%"),
        Row(f"{VIEWERS} viewers: what they add", busy - quiet, "%", 5.0),
        Row("a viewer: what it is sent", received / VIEWERS / WATCHED_S / 1000, "kB/s"),
        Row(f"{VIEWERS} viewers: memory (RSS)", memory, "MiB"),
    ]


def _share(node: Node) -> float:
    """Of a core, in percent, over WATCHED_S."""
    began, before = time.monotonic(), processor_s(node.pid)
    time.sleep(WATCHED_S)
    return (processor_s(node.pid) - before) / (time.monotonic() - began) * 100


@contextmanager
def _watching(node: Node, count: int) -> Iterator[list[int]]:
    """So many viewers that read all they get; yields how many bytes that is, so far."""
    taken, over = [0], threading.Event()
    with ExitStack() as stack, selectors.DefaultSelector() as waiting:
        for _ in range(count):
            connection = stack.enter_context(node.host.socket())
            connection.connect(("127.0.0.1", API_PORT))
            connection.sendall(b"GET /api/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            waiting.register(connection, selectors.EVENT_READ)

        def read() -> None:
            while not over.is_set():
                for key, _ in waiting.select(timeout=0.2):
                    assert isinstance(key.fileobj, socket.socket)
                    taken[0] += len(key.fileobj.recv(1 << 16))

        thread = threading.Thread(target=read, name="viewers")
        thread.start()
        try:
            yield taken
        finally:
            over.set()
            thread.join()
