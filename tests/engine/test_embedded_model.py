"""The embedded demo model counts, whatever it is wrapped in, and is loaded as any other folder."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import mlx_lm
import pytest
from mlx_lm.sample_utils import make_sampler

from exoengine.embedded import MODELS, is_embedded, model_folder
from exoengine.embedded.count_language import (
    HELP,
    UNK,
    VOCABULARY,
    chat,
    count_question,
    draw_exchange,
    number,
    write_tokenizer,
)
from exoengine.embedded.train_count import CONFIG, Recipe, WindowCache, draw_batch, forward, new_model, train
from exoengine.embedded.verify_count import batches, verify

FOLDER = model_folder("embedded:count")
HELP_TEXT = "Ask me to count from 1 to 9."


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """(model, tokenizer), by the same call as for any other folder."""
    model, tokenizer = mlx_lm.load(str(FOLDER))[:2]
    return model, tokenizer


def ask(loaded: tuple[Any, Any], question: str, **options: Any) -> tuple[str, str]:
    """What the model answers in chat, put together from the streamed segments, and why it ended."""
    model, tokenizer = loaded
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    answer, reason = "", ""
    for response in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=1100, **options):
        answer += response.text
        reason = response.finish_reason or ""
    return answer, reason


def counted(first: int, last: int) -> str:
    return " ".join(str(value) for value in range(first, last + 1))
