"""Two clients that stream on two hosts of the lab, and how long they wait for a token beside others.

A third client posts a prompt of 8,000 tokens; one leaves while its own is read; one never reads its answer. For
each the longest gap of both streams, and beside nothing. A gap beside the long prompt is compared with the chunks
that were done about then: the last ones of a prompt take longer than the first, because they attend to more. What
is asked for in vain must be gone afterwards: no request is under way but those two.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import mlx.core as mx

from tests.bench import bench_serving
from tests.bench.bench_serving import GAP_CHUNKS, SHORT, WARM, Server
from tests.bench.completions import Completion, prompt
from tests.bench.rows import Row
from tests.engine.models import write_model
from tests.lab.chat import HostConnection
from tests.lab.node import wait_for
from tests.lab.topology import Lab

LONG = 8000
MODEL = {**bench_serving.MODEL, "max_position_embeddings": 2 * LONG}
STREAM_TOKENS = 6000
"""More than come in all that is measured; what is left is cancelled by leaving."""
CALM_TOKENS = 60
LEAVES_AFTER_S = 3.0
"""In the middle of its prefill, which takes a processor a minute."""
NEVER_READS_S = 20.0
PATIENCE_S = 60.0
COUNT_EVERY_S = 0.2
ABOUT_S = 2.0
"""A rank tells its figures once a second, so this holds two or three chunks of a second and more."""

Counted = tuple[float, float]
"""When, and how many chunks by then."""


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as place, Lab(2) as lab:
        folder = write_model(Path(place) / "letters", MODEL, dtype=mx.bfloat16)
        lab.link("bridge0").cut()  # the emulated cable is a process, which would take from the ranks' cores
        with bench_serving._ours(lab, folder) as server:
            return _measured(server)


def _measured(server: Server) -> list[Row]:
    streams = [server.ask(prompt(SHORT, 700 + number), STREAM_TOKENS) for number in range(2)]
    for stream in streams:
        stream.wait_for_tokens(WARM + CALM_TOKENS)
    calm = [
        after - before
        for one in streams
        for before, after in zip(one.came[WARM:], one.came[WARM + 1 :], strict=False)
    ]
    rows = [Row("a token beside nothing, of two streams", statistics.median(calm), "s")]
    with _counting(server) as counted:
        rows += _beside(streams, f"a prompt of {LONG:,} tokens", lambda: _long_prompt(server))
    (begin, first), (end, last) = counted[0], counted[-1]
    rows.append(Row("a chunk's mean time", (end - begin) / (last - first), "s"))
    worst = max(_in_chunks(list(one.came), counted) for one in streams)
    rows.append(Row("the longest gap in the time of the chunks beside it", worst, "", GAP_CHUNKS))
    rows += _beside(streams, "a client that left in its prefill", lambda: _leaves(server))
    rows += _beside(streams, "a client that never read", lambda: _never_reads(server))
    assert not any(one.finished for one in streams), "the streams were over too early"
    return rows


def _beside(streams: list[Completion], what: str, act: Callable[[], float]) -> list[Row]:
    """The longest gap of the streams during `act`, and how long that took."""
    begin = time.monotonic()
    print(f"{time.strftime('%H:%M:%S')} gaps: {what}", file=sys.stderr, flush=True)
    took_s = act()
    gap_s = max(one.worst_gap_s(begin, time.monotonic()) for one in streams)
    return [Row(f"longest gap beside {what}", gap_s, "s"), Row(f"{what}: time", took_s, "s")]


@contextlib.contextmanager
def _counting(server: Server) -> Iterator[list[Counted]]:
    """When the first rank had run how many chunks, as it tells about once a second."""
    counted: list[Counted] = [(time.monotonic(), server.chunks())]
    done = threading.Event()

    def count() -> None:
        while not done.wait(COUNT_EVERY_S):
            chunks = server.chunks()
            if chunks > counted[-1][1]:
                counted.append((time.monotonic(), chunks))

    counting = threading.Thread(target=count, name="chunks", daemon=True)
    counting.start()
    try:
        yield counted
    finally:
        done.set()
        counting.join()


def _in_chunks(came: Sequence[float], counted: Sequence[Counted]) -> float:
    """The longest gap between two tokens while those chunks ran, in the mean time of the chunks within ABOUT_S of
    it.
    """
    begin, end = counted[0][0], counted[-1][0]
    gaps = [(one, two) for one, two in itertools.pairwise(came) if begin <= one and two <= end]
    return max((two - one) / _chunk_s(counted, one - ABOUT_S, two + ABOUT_S) for one, two in gaps)


def _chunk_s(counted: Sequence[Counted], begin: float, end: float) -> float:
    first = max((one for one in counted if one[0] <= begin), default=counted[0])
    last = min((one for one in counted if one[0] >= end), default=counted[-1])
    return (last[0] - first[0]) / (last[1] - first[1])


def _long_prompt(server: Server) -> float:
    return server.ask(prompt(LONG, 1), 1).wait().first_s


def _open(server: Server, body: dict[str, object]) -> HostConnection:
    connection = HostConnection(server.host, server.port, PATIENCE_S)
    connection.request("POST", "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    return connection


def _leaves(server: Server) -> float:
    """How long after it left nothing of its request is under way any more."""
    with closing(_open(server, {"prompt": prompt(LONG, 2), "stream": True, "max_tokens": 9})):
        time.sleep(LEAVES_AFTER_S)
        assert _active(server) == 3, "its prompt was not being read"
    left = time.monotonic()
    wait_for(lambda: _active(server) == 2, PATIENCE_S, "the request of the client that left is over", every_s=0.02)
    return time.monotonic() - left


def _never_reads(server: Server) -> float:
    body = {"prompt": prompt(SHORT, 3), "stream": True, "max_tokens": 2000, "logit_bias": {"64": 100}}
    begin = time.monotonic()
    with closing(_open(server, body)):
        time.sleep(NEVER_READS_S)
    wait_for(lambda: _active(server) == 2, PATIENCE_S, "its request is over", every_s=0.02)
    return time.monotonic() - begin


def _active(server: Server) -> int:
    assert server.cluster is not None
    active: int = server.cluster.nodes[0].request("GET", "/api/status").json()["engine"]["active"]
    return active
