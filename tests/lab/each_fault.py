"""Every fault of the chaos once, each on an answer that is under way: a table of what each cost.

`python -m tests.lab.each_fault --parallel tensor [--lane LinkFaults] [--kind "clock jump"] [--transport rdma]`
(= `make each-fault`). Two hosts, and a `count from 1 to 900` on both while each fault comes and goes. An answer is
whole where it is exactly 1 … 900; a stream whose own daemon was ended on purpose may be closed. Exit code 0 where
nothing else came.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator

from tests.lab.chaos import LANES
from tests.lab.chat import ChatStream, count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.fault_kinds import moved_clock, small_disk
from tests.lab.faults import CONFIG, Lane, Tally
from tests.lab.node import wait_for
from tests.lab.reading import can_serve
from tests.lab.topology import Lab

LAST = 900
STARTED_AT = 60
SERVES_WITHIN_S = 120.0
ENDS_WITHIN_S = 180.0
SEED = 1
UNLIMITED = 1000


@contextlib.contextmanager
def cluster(parallel: str, transport: str) -> Iterator[Cluster]:
    with Lab(2) as lab, contextlib.ExitStack() as after:
        debug = CONFIG["debug"] | {"rdma_stand_in": transport == "rdma"}
        config = {"debug": debug, "engine": {"parallel": parallel, "transport": transport}}
        made = Cluster(lab, (1, 2), config=config)
        for node in made.nodes:
            moved_clock(node)
        after.enter_context(small_disk(made.nodes[1]))
        made.start()
        yield made


def one(pair: Cluster, lane: Lane, kind: str, transport: str) -> tuple[str, list[float]]:
    """What is wrong, and the longest gap of each stream that was whole."""
    pair.heal()
    pair.wait_until(
        lambda found: all(can_serve(one) and one["engine"]["transport"] == transport for one in found),
        SERVES_WITHIN_S,
        f"all serve over {transport}",
    )
    daemons = [node.process for node in pair.nodes]
    streams = [node.stream_chat(count_prompt(1, LAST)) for node in pair.nodes]
    for stream in streams:
        wait_for(lambda stream=stream: len(stream.numbers) >= STARTED_AT, SERVES_WITHIN_S, "answers are under way")
    under_way = all(not stream.finished for stream in streams)
    lane.kinds[kind]()
    wrong = [] if under_way else ["an answer was over before the fault"]
    gaps = []
    for stream, daemon in zip(streams, daemons, strict=True):
        text = _wrong(stream, ended=daemon in lane.tally.ended)
        if text:
            wrong.append(text)
        elif numbers(stream.text) == list(range(1, LAST + 1)):
            gaps.append(max(stream.gaps_s()))
    return "; ".join(wrong), gaps


def _wrong(stream: ChatStream, ended: bool) -> str:
    stream.wait(ENDS_WITHIN_S)
    found = numbers(stream.text)
    if found == list(range(1, LAST + 1)):
        return ""
    if ended and found[:-1] == list(range(1, len(found))):  # the last number may be cut in two
        return ""
    return stream.story()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.lab.each_fault")
    parser.add_argument("--parallel", choices=("auto", "pipeline", "tensor"), default="tensor")
    parser.add_argument("--transport", choices=("tcp", "rdma"), default="tcp")
    parser.add_argument("--lane", choices=[lane.__name__ for lane in LANES], help="only these faults")
    parser.add_argument("--kind", action="append", default=[], help="only this fault; may be given more than once")
    arguments = parser.parse_args()
    bad = 0
    with cluster(arguments.parallel, arguments.transport) as pair:
        for kind_of_lane in LANES:
            if arguments.lane not in (None, kind_of_lane.__name__):
                continue
            tally = Tally(UNLIMITED, time.monotonic() + 3600.0)
            lane = kind_of_lane(pair, tally, SEED)
            for kind in arguments.kind or lane.kinds:
                if kind not in lane.kinds:
                    continue
                wrong, gaps = one(pair, lane, kind, arguments.transport)
                wrong = "; ".join([*filter(None, [wrong]), *tally.failed])
                tally.failed.clear()
                bad += bool(wrong)
                shown = ", ".join(f"{gap:.2f} s" for gap in gaps) or "none whole"
                print(
                    f"{kind:32s} {len(gaps)} whole, longest gaps {shown}{wrong and f'  WRONG: {wrong}'}", flush=True
                )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
