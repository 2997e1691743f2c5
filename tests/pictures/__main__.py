"""`make pictures`: the pictures of the manual, made anew from the pages of real nodes in the lab (Linux, root).

    python -m tests.pictures [SCENE ...] [--to FOLDER]

Each scene brings a lab into a state, waits until the page shows it, and takes a picture. `denied` alone has no lab:
what macOS refuses is refused by a stand-in, and the text is what the daemon makes of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from exod.alert_table import ALERTS
from exod.model import Reason
from exoengine.embedded import model_folder
from tests.engine_service.stand_in_hub import MODEL, StandInHub, model_files, serving
from tests.fake_daemon import pair_status
from tests.http.served import served
from tests.lab.cluster import Cluster
from tests.lab.netns import missing_capability
from tests.lab.node import API_PORT
from tests.lab.topology import Lab
from tests.pictures.camera import DESK, PHONE, Camera
from tests.platform.mac.test_local_network import Node as MacNode

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
PAGE = f"http://127.0.0.1:{API_PORT}/"
SETTLED_S = 25.0  # some time on the charts
WEIGHTS_BYTES = 48_000_000
PIECE_S = 0.002  # a hub of some 8 MB/s
SEEN_WITHIN_S = 1.0  # from a cut to the picture, as it is promised

Scene = Callable[[Path], None]


@contextlib.contextmanager
def pair(hosts: int = 2, **config: dict[str, object]) -> Iterator[tuple[Lab, Cluster, Camera]]:
    """A lab that can serve, and a camera in its first host."""
    with Lab(hosts) as lab:
        cluster = Cluster(lab, config=config)
        cluster.start()
        cluster.wait_ready("thunderbolt")
        camera = Camera(lab.host(1))
        try:
            yield lab, cluster, camera
        finally:
            camera.close()


def taken(camera: Camera, file: Path, selector: str = "body") -> None:
    size = camera.shoot(file, selector)
    complaints = camera.complaints()
    assert not complaints, complaints
    print(f"{file.name}: {size / 1000:.0f} kB", flush=True)


def healthy(to: Path) -> None:
    """Also with dark colours, on a phone, and a question before an action."""
    with pair() as (_, _, camera):
        camera.open(PAGE)
        camera.ask("count from 1 to 40")
        camera.until("#chat-figures", " generated, first")
        time.sleep(SETTLED_S)
        taken(camera, to / "healthy.png")
        camera.press("Unload")
        taken(camera, to / "question.png", "#ask-dialog")
        for name, width, scheme in (("dark", DESK, "dark"), ("phone", PHONE, "light")):
            camera.open(PAGE, width=width, scheme=scheme)
            camera.until("#health-text", "healthy")
            camera.ask("count from 1 to 40")
            camera.until("#chat-figures", " generated, first")
            taken(camera, to / f"{name}.png")


def cut(to: Path) -> None:
    """The cable is cut under an answer. Says how long the page took to show it."""
    with pair() as (lab, _, camera):
        camera.open(PAGE)
        camera.until("#health-text", "healthy")
        time.sleep(SETTLED_S)
        camera.ask("count from 1 to 400")
        camera.until("#chat-log .assistant", "1 2 3")
        began = time.monotonic()
        lab.cable(1, 2).cut()
        seen_s = camera.until("#picture", "bridge0 dead") - began
        print(f"cut: the page showed it {seen_s:.2f} s after the cut", flush=True)
        assert seen_s <= SEEN_WITHIN_S
        camera.until("#chat-figures", " generated, first")
        answer = camera.run("return document.querySelector('#chat-log .assistant').textContent")
        assert answer.split() == [str(number) for number in range(1, 401)]
        time.sleep(2.0)
        taken(camera, to / "cut.png")


def recovering(to: Path) -> None:
    """Both ranks are killed in the middle of an answer, and replaced."""
    with pair() as (_, cluster, camera):
        camera.open(PAGE)
        camera.until("#health-text", "healthy")
        time.sleep(5.0)
        camera.ask("count from 1 to 400")
        camera.until("#chat-log .assistant", "1 2 3")
        for node in cluster.nodes:
            node.kill_workers()
        camera.until("#chat-figures", "the engine is recovering")
        taken(camera, to / "recovering.png")
        camera.until("#chat-figures", " generated, first")


def three(to: Path) -> None:
    with pair(3) as (_, _, camera):
        camera.open(PAGE)
        camera.ask("count from 1 to 40")
        camera.until("#chat-figures", " generated, first")
        time.sleep(5.0)
        taken(camera, to / "three.png")


def loading(to: Path) -> None:
    """A model that no node has is loaded: one node fetches it, the other takes it from there."""
    files = model_files(Path(model_folder("embedded:count")), weights_bytes=WEIGHTS_BYTES)
    with Lab(2) as lab:
        host, hub = lab.host(1), StandInHub(files, piece_s=PIECE_S)
        with host.entered(), serving(hub, host.address("en0")):
            cluster = Cluster(lab)
            for node in cluster.nodes:
                node.environment = {"HF_HOME": str(node.folder / "hf"), "HF_ENDPOINT": hub.url}
            cluster.start()
            cluster.wait_ready("thunderbolt")
            camera = Camera(host)
            try:
                camera.open(PAGE)
                camera.until("#actions", "Load a model")
                camera.press("Load")
                camera.run("document.querySelector('#ask-model-text').value = arguments[0]", MODEL)
                camera.run("document.querySelector('#ask-yes').click()")
                camera.until("#model-list", "MB/s")
                time.sleep(2.0)
                taken(camera, to / "loading.png")
            finally:
                camera.close()


def denied(to: Path) -> None:
    mac = MacNode().live(60.0)
    mac.network.deny()
    mac.live(60.0)
    status = pair_status()
    reason = Reason("local_network_denied", status.node.id, mac.check.text, time.time())
    assert reason.code in ALERTS
    alone = msgspec.structs.replace(status, reasons=(reason,), health="degraded")
    with _page_of(alone) as url:
        camera = Camera()
        try:
            camera.open(url)
            camera.until("#reason-list", "local_network_denied")
            taken(camera, to / "denied.png", "#reasons")
        finally:
            camera.close()


@contextlib.contextmanager
def _page_of(status: object) -> Iterator[str]:
    """The page of a daemon that has this status, served by a thread of its own."""
    ready, over, url = threading.Event(), threading.Event(), []

    async def serve() -> None:
        async with served() as place:
            place.daemon.status_now = status  # type: ignore[assignment]
            url.append(f"{place.api.url}/")
            ready.set()
            await asyncio.to_thread(over.wait)
            await place.quiet()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="page")
    thread.start()
    ready.wait()
    try:
        yield url[0]
    finally:
        over.set()
        thread.join()


SCENES: dict[str, Scene] = {
    "healthy": healthy,
    "cut": cut,
    "recovering": recovering,
    "three": three,
    "loading": loading,
    "denied": denied,
}
NEEDS_NO_LAB = {"denied"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--to", type=Path, default=FOLDER, help="the folder for the files (docs/pictures)")
    arguments = parser.parse_args()
    if unknown := set(arguments.scenes) - set(SCENES):
        parser.error(f"no scene {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    for name in arguments.scenes or SCENES:
        if name not in NEEDS_NO_LAB and (lacking := missing_capability()):
            print(f"{name}: left out, {lacking}", file=sys.stderr)
            continue
        SCENES[name](arguments.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
