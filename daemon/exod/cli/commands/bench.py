"""`exoctl bench`: tokens a second and time to first token of the running cluster, for 1, 2, 4 and 8 clients.

Decides what is asked (each client of each run another prompt, so that nobody finds its own in the cache) and what
is counted: a rate is of the time between the first and the last token of all. Tokens may reach this program in a
burst, later than they were made, so an answer takes at least as long as the engine says. Times are in seconds,
shown in ms.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

from exod.cli.base.options import Commands, Shell, UsageError
from exod.errors import ExitCode, ExodError, RequestError

CLIENTS: Final = "1,2,4,8"
TOKENS: Final = 64
"""Of each answer: some seconds with a large model, enough that a single slow step does not decide."""

MOST_CLIENTS: Final = 32
"""Half of the connections that the daemon's socket takes."""

LAST_NUMBER: Final = 999
"""Up to which the demo model counts."""

BAR_CHARS: Final = 24


def register(commands: Commands) -> None:
    parser = commands.add("bench", bench)
    parser.add_argument("--clients", metavar="N,N", default=CLIENTS, help=f"at once; default: {CLIENTS}")
    parser.add_argument(
        "--tokens", type=int, metavar="N", default=TOKENS, help=f"of each answer; default: {TOKENS}"
    )


@dataclass(frozen=True)
class Run:
    """One client's answer. Times of the monotonic clock."""

    asked: float
    first: float
    last: float
    tokens: int
    decode_s: float
    """From its first token to its last, as the engine counts it."""

    @property
    def begun(self) -> float:
        """When the first token was made, at the latest."""
        return max(self.asked, min(self.first, self.last - self.decode_s))


@dataclass(frozen=True)
class Row:
    clients: int
    tokens: int
    tokens_per_s: float
    tokens_per_s_each: float
    first_token_ms: float
    """The median of the clients."""
    first_token_worst_ms: float


def bench(shell: Shell, clients: str, tokens: int) -> ExitCode:
    """Measure tokens a second and time to first token of the running cluster."""
    from exod.daemon_api.shapes import Readiness

    counts = _counts(clients)
    if not 2 <= tokens <= 100_000:
        raise UsageError("--tokens: expected 2 to 100000")
    with shell.daemon() as daemon:
        (model,) = daemon.ask("models", list[str])[:1] or [""]
        readiness = daemon.ask("ready", Readiness)
    if not model and not readiness.ready:
        raise RequestError(readiness.code, readiness.text, ExitCode.DEGRADED)
    if not model:
        raise RequestError("no_model", "no model is loaded: exoctl engine load MODEL", ExitCode.DEGRADED)
    progress = _TokenBar(shell, sum(counts) * tokens)
    prompts = _prompts(tokens)
    _run(shell, next(prompts), 2, progress, warm_up=True)
    rows = [_row(shell, [next(prompts) for _ in range(count)], tokens, progress) for count in counts]
    progress.clear()
    if shell.as_json:
        shell.show_value({"model": model, "tokens_each": tokens, "rows": [asdict(row) for row in rows]})
    else:
        shell.show(_table(shell, model, rows))
    return ExitCode.OK


def _counts(clients: str) -> list[int]:
    try:
        counts = [int(part) for part in clients.split(",")]
    except ValueError:
        counts = []
    if not counts or not all(1 <= count <= MOST_CLIENTS for count in counts):
        raise UsageError(f"--clients: expected numbers from 1 to {MOST_CLIENTS}, such as {CLIENTS}")
    return counts


def _prompts(tokens: int) -> Iterator[str]:
    """One after the other, from another beginning in each run. The demo model counts `tokens` numbers from each of
    them; any other model has something to tell about numbers.
    """
    beginnings = max(1, min(LAST_NUMBER - tokens, LAST_NUMBER - 2 * TOKENS))
    at = random.randrange(beginnings)
    while True:
        yield f"count from {at % beginnings + 1} to {LAST_NUMBER}"
        at += 1


def _row(shell: Shell, prompts: list[str], tokens: int, progress: _TokenBar) -> Row:
    count = len(prompts)
    with ThreadPoolExecutor(count) as pool:
        runs = list(pool.map(lambda prompt: _run(shell, prompt, tokens, progress), prompts))
    made = sum(run.tokens for run in runs)
    busy_s = max(run.last for run in runs) - min(run.begun for run in runs)
    waits_ms = [1000 * (run.first - run.asked) for run in runs]
    # The first token of each answer is the prefill's.
    total = (made - count) / busy_s if busy_s > 0 else 0.0
    each = statistics.mean((run.tokens - 1) / (run.last - run.begun) for run in runs if run.last > run.begun)
    return Row(count, made, total, each, statistics.median(waits_ms), max(waits_ms))


def _run(shell: Shell, prompt: str, tokens: int, progress: _TokenBar, *, warm_up: bool = False) -> Run:
    """One answer. Raises ExodError where it is cut short, or has fewer than two tokens."""
    import msgspec

    from exod.daemon_api.interface import GenerationDelta, GenerationEnd, TextDelta

    decoder: msgspec.json.Decoder[GenerationDelta] = msgspec.json.Decoder(GenerationDelta)
    messages = [{"role": "user", "content": prompt}]
    asked = time.monotonic()
    first = last = decode_s = 0.0
    made = 0
    with shell.daemon() as daemon:
        given: dict[str, Any] = {"messages": messages, "max_tokens": tokens}
        for delta in daemon.stream("generate", decoder, **given):
            if isinstance(delta, TextDelta):
                last = time.monotonic()
                first = first or last
                made += 1
                if not warm_up:
                    progress.add(1)
            elif isinstance(delta, GenerationEnd):
                decode_s = delta.usage.decode_s
    if made < 2:
        raise ExodError(f"the model answered with {made} tokens: too few to measure anything")
    return Run(asked, first, last, made, decode_s)


class _TokenBar:
    """A bar on standard error, for people only."""

    def __init__(self, shell: Shell, total: int) -> None:
        self._shown = sys.stderr.isatty() and not shell.as_json
        self._total = total
        self._done = 0

    def add(self, tokens: int) -> None:
        self._done += tokens
        if self._shown:
            filled = min(BAR_CHARS, BAR_CHARS * self._done // self._total)
            bar = "#" * filled + "." * (BAR_CHARS - filled)
            sys.stderr.write(f"\r[{bar}] {self._done} of {self._total} tokens")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _table(shell: Shell, model: str, rows: list[Row]) -> list[str]:
    from exod.cli.base.paint import ms

    heads = ("clients", "tokens/s", "each", "first token", "worst")
    cells = [
        (
            str(row.clients),
            f"{row.tokens_per_s:.1f}",
            f"{row.tokens_per_s_each:.1f}",
            ms(row.first_token_ms),
            ms(row.first_token_worst_ms),
        )
        for row in rows
    ]
    widths = [max(len(line[at]) for line in (heads, *cells)) for at in range(len(heads))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    head = "  ".join(text.rjust(width) for text, width in zip(heads, widths, strict=True))
    return [shell.paint().plain(model), head, *lines]
