"""A node that is nothing but interfaces and discovery, for tests: `python -m tests.network.discovery_node ID`.

Prints one JSON line for each report of discovery, and one when it runs; ends on SIGTERM with its goodbye said.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import msgspec
import uvloop

from exod.daemon_api.discovery_state import PeerFound, PeerVanished
from exod.model import NodeId
from exod.network.interfaces import InterfaceWatcher
from exod.network.mdns_discovery import Announcement, Discovery
from exod.platform.this_host import current


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def report(what: PeerFound | PeerVanished) -> None:
    say(event="found" if isinstance(what, PeerFound) else "lost", **msgspec.to_builtins(what))


async def node(node_id: str, incarnation: int, port: int) -> None:
    me = Announcement(NodeId(node_id), f"node {node_id[:4]}", incarnation, "0.1.0", "home", port)
    discovery = Discovery(me, report)
    watcher = InterfaceWatcher(current())
    running = asyncio.create_task(discovery.run(), name="discovery")
    watching = asyncio.create_task(watcher.run(discovery.follow), name="interfaces")
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    say(event="running")
    waiting = asyncio.create_task(ended.wait(), name="until SIGTERM")
    done, _ = await asyncio.wait({running, watching, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if waiting not in done:
        sys.exit(f"ended by itself: {done}")
    watching.cancel()
    running.cancel()
    await asyncio.wait({running, watching})
    say(event="ended")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(node(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
