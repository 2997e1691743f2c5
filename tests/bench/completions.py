"""A client of `/v1/completions` for the benchmarks, of exod and of mlx_lm.server alike: it streams, and notes when
each piece came. The model of these benchmarks has a letter a token, and is made to say one letter only (by itself a
random model says parts of characters, which are held back), so a piece is a token.

Decides nothing: it asks and notes. AssertionError where an answer does not end well.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import string
import threading
import time
from typing import Any

from tests.lab.chat import HostConnection
from tests.lab.topology import Host

PATIENCE_S = 300.0
"""A long prompt takes a slow processor a minute, and another may be before it."""
LETTER = 64
"""Of `write_tokenizer`: "a"; its vocabulary begins with the printable characters from "!" on."""


def prompt(count: int, seed: int) -> str:
    """Of so many tokens; another one for each seed from its first token on, so that no cache helps."""
    chosen = random.Random(1000 * seed + count)
    return "".join(chosen.choices(string.ascii_lowercase, k=count))


class Completion:
    """One streaming completion, read in a thread of its own from the moment it is made."""

    def __init__(self, host: Host, port: int, model: str, prompt: str, max_tokens: int) -> None:
        self._host, self._port = host, port
        self._body = {
            "model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True,
            "logit_bias": {str(LETTER): 100},
        }  # fmt: skip
        self.asked = time.monotonic()
        self.came: list[float] = []
        self.text = ""
        self.error = ""
        self._thread = threading.Thread(target=self._read, name="completion", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> Completion:
        self._thread.join(PATIENCE_S)
        assert self.finished, f"no end within {PATIENCE_S:g} s after {len(self.came)} tokens"
        assert not self.error, self.error
        return self

    def wait_for_tokens(self, count: int) -> None:
        end = time.monotonic() + PATIENCE_S
        while len(self.came) < count:
            assert not self.error, self.error
            assert time.monotonic() < end, f"{len(self.came)} of {count} tokens came"
            time.sleep(0.005)

    @property
    def first_s(self) -> float:
        return self.came[0] - self.asked

    def worst_gap_s(self, begin: float, end: float) -> float:
        """The longest wait between two tokens that touches [begin, end]."""
        pairs = itertools.pairwise(list(self.came))
        return max(after - before for before, after in pairs if after >= begin and before <= end)

    def _read(self) -> None:
        connection = HostConnection(self._host, self._port, PATIENCE_S)
        try:
            sent = json.dumps(self._body).encode()
            connection.request("POST", "/v1/completions", sent, {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status != http.client.OK:
                self.error = f"HTTP {response.status}: {response.read()[:300]!r}"
                return
            for line in response:
                self._take(line.strip())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.error = f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"data: {"):
            return
        chunk: dict[str, Any] = json.loads(line[6:])
        if "error" in chunk:
            self.error = str(chunk["error"])
        if text := "".join(choice.get("text", "") for choice in chunk.get("choices", ())):
            self.came.append(time.monotonic())
            self.text += text
