"""Between text and tokens: prompts in, streamed text out, and stop strings.

Every rank does this for itself and gets the same, since it depends on the folder and the tokens alone. Decides:
what a prompt's tokens are, what text a token adds, and when a stop string has ended the answer. No MLX.
Called by generation.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_tokenizer

from exoengine.model_files.model_folder import ModelFolderError
from exoengine.protocol import GenerationRequest


class PromptError(Exception):
    """This prompt cannot be made into tokens; `code` is stable, `str(error)` is one line for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Tokenizer:
    """A folder's tokenizer, with its chat template and its end tokens. Raises ModelFolderError."""

    def __init__(self, folder: Path, eos_token_ids: Any) -> None:
        try:
            self._wrapped = load_tokenizer(folder, eos_token_ids=eos_token_ids)
        except Exception as error:  # transformers raises anything at all for a damaged tokenizer
            first_line = str(error).strip().partition("\n")[0]
            text = f"{folder}: the tokenizer cannot be read: {first_line}"
            raise ModelFolderError("bad_tokenizer", text) from error
        self.eos: frozenset[int] = frozenset(self._wrapped.eos_token_ids)

    def prompt_tokens(self, request: GenerationRequest) -> list[int]:
        """Raises PromptError."""
        if request.messages is not None:
            return self._chat_tokens(request)
        if isinstance(request.prompt, str):
            return [int(token) for token in self._wrapped.encode(request.prompt)]
        return list(request.prompt or ())

    def _chat_tokens(self, request: GenerationRequest) -> list[int]:
        if not self._wrapped.has_chat_template:
            raise PromptError("no_chat_template", "this model has no chat template: use a completion instead")
        messages = [{"role": message.role, "content": message.content} for message in request.messages or ()]
        try:
            tokens = self._wrapped.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
        except Exception as error:  # a template raises what its author chose, e.g. for roles it does not know
            first_line = str(error).strip().partition("\n")[0]
            raise PromptError("bad_messages", f"the chat template refuses these messages: {first_line}") from error
        if hasattr(tokens, "input_ids"):
            tokens = tokens["input_ids"]
        return [int(token) for token in tokens]

    def token_text(self, token: int) -> str:
        """One token on its own, as the list of likely tokens shows it."""
        return str(self._wrapped.decode([token]))

    def new_detokenizer(self) -> Any:
        detokenizer = self._wrapped.detokenizer
        detokenizer.reset()
        return detokenizer


@dataclasses.dataclass(frozen=True)
class TextStep:
    """What one token added: `text` to show now; `stopped` where it completed a stop string."""

    text: str
    stopped: bool = False


class TextStream:
    """The text of one answer, token by token. Text that could be a stop string's start is held back."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._detokenizer = tokenizer.new_detokenizer()
        self._stop = tuple(string for string in stop if string)
        self._held = ""

    def add(self, token: int) -> TextStep:
        self._detokenizer.add_token(token)
        return self._take(self._detokenizer.last_segment)

    def finish(self) -> TextStep:
        """At the end of the tokens: what was held back, unless a stop string lies in it."""
        self._detokenizer.finalize()
        step = self._take(self._detokenizer.last_segment)
        held, self._held = self._held, ""
        return step if step.stopped else TextStep(step.text + held)

    def _take(self, segment: str) -> TextStep:
        text = self._held + segment
        ends = [text.find(string) for string in self._stop]
        found = min((end for end in ends if end >= 0), default=-1)
        if found >= 0:
            self._held = ""
            return TextStep(text[:found], stopped=True)
        keep = max((_overlap(text, string) for string in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return TextStep(text[: len(text) - keep])


def _overlap(text: str, string: str) -> int:
    """The length of the longest end of `text` that is a proper start of `string`."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
