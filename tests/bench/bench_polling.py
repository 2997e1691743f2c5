"""What it costs a running answer that `/health` and `/metrics` are asked as fast as one client can.

One node in the lab that decodes, and `wrk` beside it in turns: while an answer runs, every second window has
`wrk` in it, and its tokens a second are compared with those of the windows before and after, because an answer
becomes slower as its context grows. Daemon, rank, `wrk` and client share the machine's cores.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from tests.bench.bench_serving import MODEL, STARTS_WITHIN_S, Server
from tests.bench.completions import Completion, prompt
from tests.bench.rows import Row
from tests.engine.models import write_model
from tests.lab.cluster import Cluster
from tests.lab.node import API_PORT
from tests.lab.reading import can_serve
from tests.lab.topology import Host, Lab

PATHS = ("/health", "/metrics")
WINDOW_S = 2
PAIRS = 5
"""Windows with `wrk`, for each path; one without it on either side."""
SETTLES_S = 0.2
"""`wrk` starts and ends within it; the tokens of that time count for neither side."""
TOKENS = 7000
"""More than a fast machine decodes meanwhile; the answer is left when all windows are over."""
AT_LEAST = 0.95


def run() -> list[Row]:
    if shutil.which("wrk") is None:
        raise RuntimeError("the program wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as place, Lab(1) as lab:
        folder = write_model(Path(place) / "letters", MODEL, dtype=mx.bfloat16)
        cluster = Cluster(lab, (1,), config={"engine": {"model": str(folder)}, "mqtt": {"broker": "off"}})
        cluster.start()
        try:
            cluster.wait_until(
                lambda found: all(can_serve(one) for one in found), STARTS_WITHIN_S, "the node can serve"
            )
            server = Server("exod", cluster.nodes[0].host, API_PORT, "default")
            return [row for path in PATHS for row in _beside(server, path)]
        finally:
            cluster.kill9()


def _beside(server: Server, path: str) -> list[Row]:
    answer = server.ask(prompt(24, len(path)), TOKENS)
    answer.wait_for_tokens(16)
    calm, shares, asked = [_rate(answer)], [], []
    for _ in range(PAIRS):
        busy, per_second = _rate_beside(answer, server.host, path)
        asked.append(per_second)
        calm.append(_rate(answer))
        shares.append(busy / statistics.mean(calm[-2:]))
    assert not answer.finished, "the answer was over before the last window"
    return [
        Row(f"{path}: answered a second", statistics.median(asked), "1/s", samples=tuple(asked)),
        Row("tokens/s with nothing beside", statistics.median(calm), "1/s", samples=tuple(calm)),
        Row("without it as a share of with it", 1 / statistics.median(shares), "", 1 / AT_LEAST, tuple(shares)),
    ]


def _rate(answer: Completion) -> float:
    """Tokens a second of the window that begins now."""
    begin = time.monotonic()
    time.sleep(WINDOW_S)
    return sum(begin < at <= begin + WINDOW_S for at in list(answer.came)) / WINDOW_S


def _rate_beside(answer: Completion, host: Host, path: str) -> tuple[float, float]:
    """Tokens a second while `wrk` asks for `path`, and how many answers it had a second."""
    argv = ["wrk", "-t1", "-c4", f"-d{WINDOW_S + 1}s", f"http://127.0.0.1:{API_PORT}{path}"]
    process = host.popen(argv, stdout=subprocess.PIPE, text=True)
    time.sleep(SETTLES_S)
    found = _rate(answer)
    said = process.communicate(timeout=30)[0]
    time.sleep(SETTLES_S)
    match = re.search(r"Requests/sec:\s*([\d.]+)", said)
    assert match is not None, said
    assert "Non-2xx" not in said, said
    return found, float(match.group(1))
