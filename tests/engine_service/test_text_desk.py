"""Questions to the worker about texts: answered, refused, or left to the ranks."""

from __future__ import annotations

import asyncio

import pytest

from exod.engine_service import text_desk
from exod.engine_service.text_desk import TextDesk
from exod.errors import RequestError
from exoengine.protocol import (
    ChatMessage,
    GenerationRequest,
    Hello,
    Load,
    Loaded,
    PromptTokens,
    TextAnswered,
    TextAsked,
    ToWorker,
)

pytestmark = pytest.mark.anyio

CHAT = GenerationRequest("q", 9, messages=(ChatMessage("user", "hi"),))
HOLDS_A_MODEL = Hello(1, 1, {}, "f", None, 0, False, (), answers_texts=True)
OF_AN_EARLIER_EXOD = Hello(1, 1, {}, "f", None, 0, False, ())


class Desk:
    def __init__(self) -> None:
        self.asked: list[TextAsked] = []
        self.desk = TextDesk(self._tell)
        self.desk.said(HOLDS_A_MODEL)

    def _tell(self, message: ToWorker) -> None:
        assert isinstance(message, TextAsked)
        self.asked.append(message)

    async def answered(self, answer: TextAnswered, request: GenerationRequest = CHAT) -> GenerationRequest:
        working = asyncio.create_task(self.desk.prepared(request))
        while not self.asked:  # noqa: ASYNC110 - a plain list
            await asyncio.sleep(0)
        asked = self.asked.pop()
        assert self.desk.said(TextAnswered(asked.ask_id, answer.tokens, answer.thinks, code=answer.code))
        return await working


async def test_a_request_goes_on_with_its_prompt_in_tokens() -> None:
    desk = Desk()
    chat = await desk.answered(TextAnswered("", (1, 2), True))
    assert (chat.messages, chat.prepared) == ((), PromptTokens((1, 2), True))
    plain = await desk.answered(TextAnswered("", (3,)), GenerationRequest("q", 9, prompt="hi"))
    assert plain.prompt == (3,)


async def test_what_can_never_be_served_is_refused_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        await Desk().answered(TextAnswered("", code="context_length_exceeded"))
    assert caught.value.code == "context_length_exceeded"


async def test_without_a_model_here_the_ranks_read_the_prompt_themselves() -> None:
    desk = TextDesk(lambda message: None)
    assert await desk.prepared(CHAT) is CHAT
    desk.said(HOLDS_A_MODEL)
    desk.told(Load("folder", 0, 1))
    assert await desk.prepared(CHAT) is CHAT
    with pytest.raises(RequestError, match="no model"):
        await desk.ask(TextAsked("", text="a"))


async def test_a_worker_of_an_earlier_exod_is_not_asked_what_it_does_not_know() -> None:
    """It would end its daemon's connection, and the answer that runs with it."""
    told: list[ToWorker] = []
    desk = TextDesk(told.append)
    desk.said(OF_AN_EARLIER_EXOD)
    assert await desk.prepared(CHAT) is CHAT
    desk.said(Loaded("folder", (0, 1), 1, "f", 1, 0.1, 100))
    assert await desk.prepared(CHAT) is CHAT
    assert told == []


async def test_a_worker_that_ends_leaves_nobody_waiting() -> None:
    desk = Desk()
    working = asyncio.create_task(desk.desk.prepared(CHAT))
    await asyncio.sleep(0)
    desk.desk.gone()
    assert await working is CHAT


async def test_a_worker_that_says_nothing_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_desk, "DEADLINE_S", 0.01)
    with pytest.raises(RequestError) as caught:
        await Desk().desk.prepared(CHAT)
    assert caught.value.code == "unavailable"
