"""What a client asks to have generated, as the daemon hands it to every rank: values alone.

`protocol.py` carries it, and gives these names to both ends.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Sampling(msgspec.Struct, frozen=True):
    """How a token is drawn. `temperature` 0 is greedy. Each draw is keyed by (seed, step)."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context_tokens: int = 20
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: dict[int, float] = {}
    logprobs: int = -1
    """-1: none; 0: of the drawn token; n: and of the n most likely ones."""


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model made in an earlier turn; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant's turn."""
    tool_call_id: str = ""
    """Which call a turn with the role `tool` answers."""


class Tools(msgspec.Struct, frozen=True):
    """The functions that the model may call."""

    specs: str
    """A JSON list, as OpenAI's `tools` has it."""
    choice: Literal["auto", "required", "named"] = "auto"
    name: str = ""
    """The function that must be called, where `choice` is `named`."""
    parallel: bool = True
    """May an answer hold more than one call?"""


class Grammar(msgspec.Struct, frozen=True):
    """What an answer's text must be: any JSON object, or JSON that a schema allows."""

    kind: Literal["json_object", "json_schema"]
    schema: str = ""
    """JSON text."""


class PromptTokens(msgspec.Struct, frozen=True):
    """A prompt that was made into tokens before."""

    tokens: tuple[int, ...]
    thinks: bool = False
    """Has it opened the model's reasoning?"""


class GenerationRequest(msgspec.Struct, frozen=True):
    """One generation. Exactly one of `messages` (chat) and `prompt` (completion) is set."""

    request_id: str
    max_tokens: int
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    tools: Tools | None = None
    template: str = "{}"
    """A JSON object: what the chat template is given beside the messages, such as `enable_thinking`."""
    continues: bool = False
    """The last message is the beginning of the answer."""
    grammar: Grammar | None = None
    prepared: PromptTokens | None = None
    """The prompt in tokens; `messages` is then empty for a chat, and None for a completion."""
    client: str = ""
    """Names who asks (a key, else an address): clients take turns. The engine makes nothing of it."""
    scores_prompt: bool = False
    """The answer begins with the prompt's own tokens from the second on, each with its log probability; they are
    put through the model one by one, and `max_tokens` does not count them."""
