"""Answers to chats that give their tools as `functions`, OpenAI's form before `tools`: one `function_call`.

Decides only shapes. `openai_requests` reads such a chat, and asks the model for one call at a time.
"""

from __future__ import annotations

from typing import Any

from exod.daemon_api.interface import GenerationEnd, TextDelta
from exod.http.dialects.ask import Ask
from exod.http.dialects.choices import Choice
from exod.http.dialects.openai_answers import ChatAnswer
from exod.http.dialects.openai_requests import OLDER_CALLS


def chat_answer(ask: Ask, model: str, created: int) -> ChatAnswer:
    return (OlderChatAnswer if ask.extra == OLDER_CALLS else ChatAnswer)(ask, model, created)


class OlderChatAnswer(ChatAnswer):
    def _deltas(self, delta: TextDelta | GenerationEnd) -> list[dict[str, Any]]:
        deltas = [_older(one) for one in super()._deltas(delta)]
        return [one for one in deltas if one] or [{}]

    def _whole_choice(self, at: int, choice: Choice) -> dict[str, Any]:
        whole = super()._whole_choice(at, choice)
        calls = whole["message"].pop("tool_calls", None)
        if calls:
            whole["message"]["function_call"] = calls[0]["function"]
        return whole

    def _reason(self, choice: Choice) -> str:
        reason = super()._reason(choice)
        return "function_call" if reason == "tool_calls" else reason


def _older(delta: dict[str, Any]) -> dict[str, Any]:
    """The first call's part of it without its number and id, which the form has not; of more calls nothing."""
    calls = delta.pop("tool_calls", ())
    if calls and calls[0]["index"] == 0:
        delta["function_call"] = calls[0]["function"]
    return delta
