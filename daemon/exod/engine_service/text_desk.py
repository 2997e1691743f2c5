"""Questions to this node's worker about texts and tokens: a prompt's tokens, before a request is queued.

Decides how long an answer is waited for. Where this node's worker holds no model, or is an earlier exod's that
knows no such question, the request goes on as it is: the ranks then read the prompt themselves. Times are in
seconds.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

import msgspec

from exod.errors import ExitCode, RequestError
from exoengine.protocol import (
    FromWorker,
    GenerationRequest,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    PromptTokens,
    TextAnswered,
    TextAsked,
    ToWorker,
)

DEADLINE_S: Final = 15.0
"""Longer than the worker gives to one text (10 s), so that its own words come through; others may be before it."""


class TextDesk:
    """`tell` sends to the worker; what it says comes to `said`."""

    def __init__(self, tell: Callable[[ToWorker], None]) -> None:
        self._tell = tell
        self._waiting: dict[str, asyncio.Future[TextAnswered]] = {}
        self._numbers = itertools.count(1)
        self.can_answer = False
        """Does this node's worker hold a model, and does it know these questions?"""
        self._knows_texts = False

    def said(self, message: FromWorker) -> bool:
        """Whether the message was an answer to a question of this desk, and concerns nobody else."""
        match message:
            case TextAnswered():
                future = self._waiting.pop(message.ask_id, None)
                if future is not None and not future.done():
                    future.set_result(message)
                return True
            case Loaded():
                self.can_answer = self._knows_texts
            case Hello():
                self._knows_texts = message.answers_texts
                self.can_answer = message.answers_texts and message.fingerprint is not None
            case LoadFailed():
                self.can_answer = False
        return False

    def told(self, message: ToWorker) -> None:
        """What others send to the worker: while it loads it holds no model."""
        if isinstance(message, Load):
            self.can_answer = False

    def gone(self) -> None:
        """The worker has ended: nobody answers any more."""
        self.can_answer = False
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_result(TextAnswered("", code="not_ready", problem="the worker ended meanwhile"))

    async def ask(self, asked: TextAsked) -> TextAnswered:
        """Raises RequestError where there is no answer, or where it says what is wrong with the question."""
        if not self.can_answer:
            raise RequestError("not_ready", "no model is loaded on this node", ExitCode.DEGRADED)
        ask_id = str(next(self._numbers))
        future: asyncio.Future[TextAnswered] = asyncio.get_running_loop().create_future()
        self._waiting[ask_id] = future
        try:
            self._tell(msgspec.structs.replace(asked, ask_id=ask_id))
            async with asyncio.timeout(DEADLINE_S):
                answer = await future
        except TimeoutError:
            text = f"the tokenizer is busy with other texts for more than {DEADLINE_S:g} s; ask again"
            raise RequestError("unavailable", text, ExitCode.DEGRADED) from None
        finally:
            self._waiting.pop(ask_id, None)
        if answer.code:
            raise RequestError(answer.code, answer.problem, ExitCode.DEGRADED)
        return answer

    async def prepared(self, request: GenerationRequest) -> GenerationRequest:
        """The request with its prompt in tokens. Raises RequestError for a prompt that can never be served."""
        if not self.can_answer or request.prepared is not None or isinstance(request.prompt, tuple):
            return request
        try:
            answer = await self.ask(TextAsked("", request, will_run=True))
        except RequestError as error:
            if error.code == "not_ready":
                return request
            raise
        tokens = PromptTokens(answer.tokens, answer.thinks)
        if request.messages is None:
            return msgspec.structs.replace(request, prompt=answer.tokens)
        return msgspec.structs.replace(request, messages=(), prepared=tokens)
