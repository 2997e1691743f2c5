"""A context of 200,000 tokens through two ranks: where the mode changes, what memory grows by, and the same tokens.

Twice a prompt ends just below the safe context and its answer crosses it: at 50,000 tokens, the default, and at
200,000, so that fast and safe steps both run there. The second answer is cut by an aborted group as well. What is
compared with is mlx-lm alone in one process. The model is as little work a token as attention over everything can
be: one head, one layer with a window and then one without. A prefill needs nothing of the last layer but its cache,
so that the whole context is attended to by the answer's steps alone, and all of it ends in minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from exoengine.model_files.memory_fit import SpanTable
from exoengine.model_files.model_folder import inspect
from exoengine.protocol import Abort, Aborted, Finished, Heartbeat, SyncSettings, TokenOut
from tests.bench.rows import Row
from tests.engine.driver import Answer, Cluster, Rank, cluster, request
from tests.engine.models import LLAMA, write_model

SAFE_CONTEXTS = (50_000, 200_000)
STEPS = 200
BELOW = 100  # so many of the steps come before the safe context
CUT_AT = 150  # the token of the longest answer at which its group is aborted
POOL_MB = 50.0  # what MLX keeps of freed buffers between two clearings (generation.py, CLEAR_CACHE_STEPS)
SETTLED_AT = 20  # by then a step's transient memory has been taken once
PATIENCE_S = 3600.0
WATCHDOG_S = 60.0  # on this CPU a chunk takes seconds: chunks stay at 512, as the process alone cuts them

NARROW = {
    **LLAMA, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16, "num_attention_heads": 1,
    "num_key_value_heads": 1, "max_position_embeddings": 1_000_000, "sliding_window": 512,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip

ALONE = """
import json, sys
from pathlib import Path
from tests.bench.bench_context import STEPS, prompt_of
from tests.engine.models import undisturbed
print(json.dumps(undisturbed(Path(sys.argv[1]), prompt_of(int(sys.argv[2])), STEPS)))
"""


def run(tokens: int | None = None) -> list[Row]:
    """`tokens` instead of the longer context: a short look."""
    contexts = SAFE_CONTEXTS if tokens is None else (tokens // 4, tokens)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = write_model(Path(name) / "narrow", NARROW)
        alone = [_start_alone(folder, context) for context in contexts]
        with cluster(Path(name), 2) as ranks:
            for context, process in zip(contexts, alone, strict=True):
                rows += _cross(ranks, folder, context, process, cut=context == contexts[-1])
    return rows


def prompt_of(context: int) -> list[int]:
    return [(7 * index + index // 251) % 250 for index in range(context - BELOW)]


def _start_alone(folder: Path, context: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ALONE, str(folder), str(context)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _cross(ranks: Cluster, folder: Path, context: int, alone: subprocess.Popen[str], cut: bool) -> list[Row]:
    """One answer that crosses `context`, on the second of two ranks, which has the layer without a window."""
    settings = SyncSettings(safe_context_tokens=context, watchdog_s=WATCHDOG_S, chunk_deadline_s=600.0)
    ranks.load(folder, [1, 1], settings)
    ranks.form()
    rank = ranks.ranks[1]
    began = time.monotonic()
    asked = request(prompt_of(context), STEPS)
    ranks.begin(asked)
    beats, filling = _watch_until(rank, TokenOut, asked.request_id, 0)
    prefill_s = time.monotonic() - began
    more, settling = _watch_until(rank, TokenOut, asked.request_id, SETTLED_AT)
    beats += more
    if cut:
        beats += _watch_until(rank, TokenOut, asked.request_id, CUT_AT)[0]
        ranks.ranks[1].send(Abort("the bench cuts a link"))
        for one in ranks.ranks[:2]:
            one.expect(Aborted)
        ranks.form()
    more, answering = _watch_until(rank, Finished, asked.request_id, 0)
    beats += more
    said = Answer(rank.seen, asked.request_id).tokens
    expected = json.loads(alone.communicate(timeout=PATIENCE_S)[0])
    decode = [beat for beat in beats if beat.kv_tokens >= context - BELOW]
    safe = next(beat for beat in decode if beat.sync_mode == "safe" and str(context) in beat.sync_reason)
    grown = max(beat.memory_bytes for beat in decode) - min(
        beat.memory_bytes for beat in beats if beat.kv_tokens > 0
    )
    cache = SpanTable(inspect(folder), context).cache_bytes(1, 2) * 2  # the weights are float32
    name = f"{context} tokens"
    return [
        Row(f"{name}: first heartbeat that says safe, tokens beyond", safe.kv_tokens - context, "", BELOW),
        Row(f"{name}: heartbeats of fast steps before", sum(beat.sync_mode == "fast" for beat in decode), ""),
        Row(
            f"{name}: tokens unlike the process alone",
            sum(a != b for a, b in zip(said, expected, strict=True)),
            "",
            0,
        ),
        Row(f"{name}: the cache", cache / 1e6, "MB"),
        Row(f"{name}: MLX memory grown by, beside the cache's size", grown / cache, "", 1.2),
        Row(
            f"{name}: resident memory grown by after token 20", (answering[-1] - settling[-1]) / 1e6, "MB", POOL_MB
        ),
        Row(f"{name}: resident memory, the most while prefilling", max(filling) / 1e6, "MB"),
        Row(f"{name}: prefill", prefill_s, "s"),
        Row(f"{name}: a token, median", 1e3 / median(b.tokens_per_s for b in decode if b.tokens_per_s > 0), "ms"),
    ]


def _watch_until(
    rank: Rank, kind: type[TokenOut | Finished], request_id: str, index: int
) -> tuple[list[Heartbeat], list[int]]:
    """The heartbeats until the message comes, and the process's resident bytes meanwhile."""
    process, beats, resident = psutil.Process(rank.process.pid), [], []
    while True:
        said = rank.expect(TokenOut, Finished, Heartbeat, within_s=PATIENCE_S)
        resident.append(process.memory_info().rss)
        if isinstance(said, Heartbeat):
            beats.append(said)
        arrived = isinstance(said, kind) and said.request_id == request_id
        if arrived and getattr(said, "index", index) >= index:
            return beats, resident
