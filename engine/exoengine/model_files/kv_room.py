"""Is there memory for the KV cache of one more request on this rank?

A request needs room for its prompt and for as much of its answer as is likely; an answer that grows beyond that
goes on. Decides: whether a request can never run here, and whether it must wait for others to end. Pure: no MLX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

from exoengine.model_files.memory_fit import gib

ANSWER_TOKENS: Final = 1024
"""Of an answer that many are counted at most. Clients that name no limit get the whole context, and few answers are
longer than this: to keep room for all of it would leave most of the memory unused."""


@dataclasses.dataclass(frozen=True)
class KvRoom:
    budget_bytes: int
    """What this rank has for the KV caches of running requests."""
    needs: Callable[[int], int]
    """The bytes of one sequence of so many tokens on this rank's layers."""

    def wanted_bytes(self, prompt_tokens: int, max_tokens: int) -> int:
        return self.needs(prompt_tokens + min(max_tokens, ANSWER_TOKENS))

    def refusal(self, prompt_tokens: int, max_tokens: int) -> str:
        """Why a request can never run, with the sum; empty where it can."""
        wanted = self.wanted_bytes(prompt_tokens, max_tokens)
        if wanted <= self.budget_bytes:
            return ""
        answer = min(max_tokens, ANSWER_TOKENS)
        return (
            f"the KV cache of {prompt_tokens} tokens of prompt and {answer} of answer needs {gib(wanted)} on one"
            f" rank, which has {gib(self.budget_bytes)} for it: shorten the prompt, or lower max_tokens"
        )

    def must_wait(self, wanted_bytes: int, held_bytes: int) -> bool:
        """`held_bytes`: of the requests that are open. One alone never waits: nobody would make room for it."""
        return held_bytes > 0 and wanted_bytes + held_bytes > self.budget_bytes
