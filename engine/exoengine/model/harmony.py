"""The response format of gpt-oss ("harmony"), which mlx-lm has no parser for.

A turn holds several messages, each with a header that says where it goes:

    <|channel|>analysis<|message|>what is thought<|end|>
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>what is said<|return|>

Decides how these map to what is thought, called and said. No MLX.
https://cookbook.openai.com/articles/openai-harmony
"""

from __future__ import annotations

import json
from typing import Any, Final

TOKENS: Final = ("<|channel|>", "<|message|>", "<|constrain|>", "<|start|>")
"""A vocabulary with these is gpt-oss's."""

HEADER: Final = "header"
"""The state between two messages; its text belongs to nobody."""

FINAL: Final = "<|channel|>final<|message|>"
"""What is said comes after this."""

TRANSITIONS: Final[dict[str, list[tuple[str, str]]]] = {
    HEADER: [
        ("to=functions.", "tool"),
        ("<|channel|>analysis<|message|>", "reasoning"),
        (FINAL, "normal"),
        ("<|channel|>commentary<|message|>", "normal"),
    ],
    "reasoning": [("<|end|>", HEADER)],
    "normal": [("<|end|>", HEADER), ("<|return|>", HEADER)],
    "tool": [("<|call|>", HEADER), ("<|end|>", HEADER)],
}


def is_harmony(wrapped: Any) -> bool:
    """`wrapped` is mlx-lm's tokenizer."""
    vocabulary = wrapped.get_vocab()
    return all(token in vocabulary for token in TOKENS)


def parse_call(text: str, tools: Any = None) -> dict[str, Any]:
    """What comes after `to=functions.`: the name, the rest of the header, and the arguments. Raises ValueError."""
    header, mark, arguments = text.partition("<|message|>")
    name = header.split("<", 1)[0].split()
    if not mark or not name:
        raise ValueError("no call")
    return {"name": name[0], "arguments": json.loads(arguments)}


def forced_call(name: str) -> str:
    """How a call begins that must be made; of any function where `name` is empty."""
    start = "<|channel|>commentary to=functions."
    return f"{start}{name} <|constrain|>json<|message|>" if name else start
