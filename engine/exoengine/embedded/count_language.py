"""The language of `embedded:count`: its words, its tokenizer, and what is a right answer to what.

One token is one word, and each number from 0 to 999 is a word, so that a lost or repeated token shows as a
lost or repeated number. Words that the model does not know are all one word, which it learns to pass over:
"Please count from 3 to 60!" and "count from 3 to 60" differ by one `<unk>`.

This module decides what the model is taught. It knows nothing of MLX and nothing of how training works;
`train_count` and `verify_count` call it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

LARGEST = 999

# The control words come first: their ids are their places.
CONTROL = ("<unk>", "<end>", "<user>", "<assistant>")
UNK, END, USER, ASSISTANT = range(len(CONTROL))

# "▁" stands for the space before a word, as in SentencePiece: mlx-lm then streams text in linear time.
# The last three are only ever said by the model: the tokenizer lower-cases what a user writes, leaves no spaces in
# it and drops its points. So "me" in a question is one more unknown word.
WORDS = ("▁count", "▁from", "▁to", "▁Ask", " me", ".")
VOCABULARY = (*CONTROL, *WORDS, *(f"▁{number}" for number in range(LARGEST + 1)))
ID = {word: token for token, word in enumerate(VOCABULARY)}
COUNT, FROM, TO = ID["▁count"], ID["▁from"], ID["▁to"]

# What the model says where it was not asked to count upwards: "Ask me to count from 1 to 9."
HELP = (*(ID[word] for word in ("▁Ask", " me", "▁to", "▁count", "▁from", "▁1", "▁to", "▁9", ".")), END)

CONTEXT = 4096
"""Positions the tokenizer and the model's config admit. The longest answer that is taught ends near 1,040."""

# Only the latest question is put to the model: it knows no more of a conversation than that.
CHAT_TEMPLATE = (
    "{%- for message in messages if message['role'] == 'user' -%}"
    "{%- if loop.last -%}<user>{{ message['content'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)


def number(value: int) -> int:
    """The token of the number `value`, 0 to 999."""
    return ID["▁0"] + value


@dataclass(frozen=True)
class Exchange:
    """A prompt and the one right answer to it, both as tokens; the answer ends with END."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def counting(first: int, last: int) -> tuple[int, ...]:
    """The right answer to "count from `first` to `last`"."""
    return (*(number(value) for value in range(first, last + 1)), END)


def chat(question: list[int]) -> tuple[int, ...]:
    """The prompt that the chat template makes of a question."""
    return (USER, *question, ASSISTANT)


def count_question(first: int, last: int) -> list[int]:
    """ "count from `first` to `last`" """
    return [COUNT, FROM, number(first), TO, number(last)]


def question_and_answer(first: int, last: int) -> Exchange:
    return Exchange(chat(count_question(first, last)), counting(first, last))


# What is drawn for training. Each draw takes the question's length, so that a batch needs no padding.


def draw_exchange(rng: Random, length: int) -> Exchange:
    """An exchange whose prompt has exactly `length` tokens, 2 or more.

    Where the length allows: 75% "count from A to B", 5% "count to B", 12% "count from B to A", 8% what is
    no question at all. The last two are answered with HELP.
    """
    room = length - 2  # USER and ASSISTANT
    kind = rng.random()
    if room >= 5 and kind < 0.75:
        first, last = _upwards(rng)
        if kind < 0.03:  # plain completion: the question without the chat's frame
            return Exchange(tuple(_spread(rng, count_question(first, last), length)), counting(first, last))
        return Exchange(chat(_spread(rng, count_question(first, last), room)), counting(first, last))
    if room >= 3 and kind < 0.80:
        last = rng.randint(1, LARGEST)
        return Exchange(chat(_spread(rng, [COUNT, TO, number(last)], room)), counting(1, last))
    if room >= 5 and kind < 0.92:
        return Exchange(chat(_spread(rng, count_question(*_downwards(rng)), room)), HELP)
    if room >= 5 and kind < 0.96:
        return Exchange(chat(_spread(rng, _half_understood(rng), room)), HELP)
    return Exchange(chat(_babble(rng, room)), HELP)


def _spread(rng: Random, words: list[int], length: int) -> list[int]:
    """`words` in their order among as many unknown words as make `length` in all."""
    spread = [UNK] * length
    for place, word in zip(sorted(rng.sample(range(length), len(words))), words, strict=True):
        spread[place] = word
    return spread


def _upwards(rng: Random) -> tuple[int, int]:
    """0 <= A <= B <= 999: three in ten at most 12 apart, since those are rare among all pairs."""
    if rng.random() < 0.3:
        first = rng.randint(0, LARGEST)
        return first, min(LARGEST, first + rng.randint(0, 12))
    first, last = sorted((rng.randint(0, LARGEST), rng.randint(0, LARGEST)))
    return first, last


def _downwards(rng: Random) -> tuple[int, int]:
    """A > B: often small numbers, since people ask for a countdown from 10, and often close ones."""
    kind = rng.random()
    if kind < 0.4:
        last, first = sorted(rng.sample(range(31), 2))
    elif kind < 0.7:
        apart = round(2 ** rng.uniform(0, 9.9))
        last = rng.randint(0, LARGEST - apart)
        first = last + apart
    else:
        last, first = sorted(rng.sample(range(LARGEST + 1), 2))
    return first, last


def _half_understood(rng: Random) -> list[int]:
    """ "count from 5 to 1000": one of the two numbers is an unknown word."""
    words = count_question(*_upwards(rng))
    words[rng.choice((2, 4))] = UNK
    return words


def _babble(rng: Random, length: int) -> list[int]:
    """Known and unknown words in which no number comes after "to": such is never a question."""
    words = [rng.choice((UNK, UNK, COUNT, FROM, TO, number(rng.randint(0, LARGEST)))) for _ in range(length)]
    last_number = max((place for place, word in enumerate(words) if word >= number(0)), default=-1)
    return [UNK if word == TO and place < last_number else word for place, word in enumerate(words)]


# The tokenizer, in the format of Hugging Face's `tokenizers`.


def write_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, chat template included, into `folder`."""
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": VOCABULARY[UNK],
            "eos_token": VOCABULARY[END],
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _tokenizer() -> dict[str, Any]:
    """Lower-cases, drops punctuation, splits at spaces, and looks each word up."""
    return {
        "version": "1.0",
        "added_tokens": [_control_word(token) for token in range(len(CONTROL))],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Lowercase"},
                # A point or comma within a number stays: 1,000 and 3.5 are unknown words, not two numbers.
                {
                    "type": "Replace",
                    "pattern": {"Regex": r"[^\w.,]+|[.,]+(?!\d)|(?<!\d)[.,]+"},
                    "content": " ",
                },
                {"type": "Strip", "strip_left": True, "strip_right": True},
                {"type": "Replace", "pattern": {"Regex": r" +"}, "content": "▁"},
                {"type": "Prepend", "prepend": "▁"},
            ],
        },
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": "▁"},
            "behavior": "MergedWithNext",
            "invert": False,
        },
        "post_processor": None,
        # mlx-lm knows this sequence and streams it token by token (its SPMStreamingDetokenizer).
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "WordLevel", "vocab": ID, "unk_token": VOCABULARY[UNK]},
    }


def _control_word(token: int) -> dict[str, Any]:
    return {
        "id": token,
        "content": VOCABULARY[token],
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
