"""Between text and tokens: prompts in, streamed text out.

Every rank does this for itself and gets the same, since it depends on the folder and the tokens alone. Decides:
what a prompt's tokens are; what its answer's text is, `answer_text.py` does. No MLX arrays. Raises PromptError,
GrammarError and ModelFolderError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_tokenizer

from exoengine.model import deadlines, harmony
from exoengine.model.answer_text import FOLDED_END, FOLDED_START, AnswerText, Markers, markers_of, no_markers
from exoengine.model.chat_prompt import (
    SLICE_CHARS,
    ChatPrompt,
    PromptError,
    chat_prompt,
    refuse_too_long,
    takes_tools,
)
from exoengine.model.deadlines import Abandoning, StillBusyError, TooSlowError
from exoengine.model.grammar import (
    CANNOT_WRITE,
    JSON_TOOLS,
    AnswerMask,
    GrammarError,
    Vocabulary,
    forced_prefix,
    lark_of,
    marker,
)
from exoengine.model.harmony import is_harmony
from exoengine.model.pieces import Pieces
from exoengine.model.tool_calls import CallReader
from exoengine.model_files.model_folder import ModelFolderError
from exoengine.protocol import GenerationRequest
from exoengine.typed_text import TypedText


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
        self._encoding = Abandoning()
        self.pieces = Pieces(self._wrapped)
        self._typed = TypedText(self._wrapped, frozenset({FOLDED_START, FOLDED_END}))
        self._vocabulary: Vocabulary | GrammarError | None = None
        """What grammars need of the vocabulary, or why none can be followed; None until it is prepared."""
        self._markers: dict[tuple[bool, bool, bool], Markers] = {}

    def prompt_tokens(self, request: GenerationRequest) -> list[int]:
        """Raises PromptError."""
        return self.prompt(request)[0]

    def prompt(self, request: GenerationRequest, max_context_tokens: int = 0) -> tuple[list[int], bool]:
        """The prompt's tokens, and whether it has opened the model's reasoning. What has more tokens than the
        context is not read to its end; 0: everything is. Raises PromptError.
        """
        if request.prepared is not None:
            return list(request.prepared.tokens), request.prepared.thinks
        given = [message.content for message in request.messages or ()]
        if isinstance(request.prompt, str):
            given.append(request.prompt)
        self._refuse_too_long(given, max_context_tokens)
        try:
            if request.messages is not None:
                with deadlines.interrupted_after(deadlines.TEMPLATE_S, "the chat template"):
                    chat = chat_prompt(self._wrapped, request, self._typed)
                if len(chat.text) > sum(map(len, given)) + SLICE_CHARS:  # what was given is counted already
                    self._refuse_too_long([chat.text], max_context_tokens)
                return self._encode_in_time(lambda: self._chat_tokens(chat)), chat.thinks
            if isinstance(request.prompt, str):
                prompt = request.prompt
                return self._encode_in_time(lambda: self.encode(prompt)), False
        except StillBusyError as error:
            raise PromptError("unavailable", str(error)) from None
        except TooSlowError as error:
            raise PromptError("bad_messages", str(error)) from None
        return list(request.prompt or ()), False

    def _refuse_too_long(self, texts: list[str], max_context_tokens: int) -> None:
        if max_context_tokens:
            refuse_too_long(texts, partial(self.encode, control=False), max_context_tokens)

    def _chat_tokens(self, chat: ChatPrompt) -> list[int]:
        return self._typed.tokens(chat.text, chat.mark, lambda text: self.encode(text, control=False))

    def _encode_in_time(self, encode: Callable[[], list[int]]) -> list[int]:
        """Raises TooSlowError."""
        return self._encoding.run(encode, deadlines.ENCODE_S, "the tokenizer")

    def encode(self, text: str, *, control: bool = True) -> list[int]:
        """`control`: with the control tokens that the tokenizer puts around a text, such as its beginning."""
        return [int(token) for token in self._wrapped.encode(text, add_special_tokens=control)]

    def decode(self, tokens: Sequence[int], *, control: bool = False) -> str:
        """The text of these tokens; `control`: with the names of control tokens."""
        decoder = self.pieces.decoder(keep_first_space=False)
        text = "".join(decoder.add(token) for token in tokens if control or token not in self.pieces.control)
        return text + decoder.finish()

    def answer_text(self, request: GenerationRequest, thinks: bool) -> AnswerText:
        """A new answer to `request`, whose prompt has opened the model's reasoning where it `thinks`."""
        tools, chat = request.tools, request.messages is not None
        key = (chat, thinks, tools is not None)
        markers = self._markers.get(key)
        if markers is None:
            markers = self._markers[key] = self._find_markers(chat, thinks, tools is not None)
        reader = None
        if tools is not None:
            parser = harmony.parse_call if is_harmony(self._wrapped) else self._wrapped.tool_parser
            reader = CallReader(request.request_id, tools.specs, parser)
        goes_on = not chat or request.continues
        parallel = tools is None or tools.parallel
        return AnswerText(self.pieces, markers, request.stop, reader, goes_on=goes_on, parallel=parallel)

    def answer_mask(self, request: GenerationRequest, thinks: bool, vocab_size: int) -> AnswerMask | None:
        """What the answer's tokens may be; None where they may be any. Raises GrammarError."""
        tools = request.tools
        forced = tools is not None and tools.choice != "auto"
        if request.grammar is None and not forced:
            return None
        wrapped, vocabulary = self._wrapped, self._vocabulary_for_grammars(vocab_size)
        if is_harmony(wrapped):
            return self._harmony_mask(request, forced, vocabulary)
        parser = wrapped.tool_parser.__module__.rpartition(".")[2] if wrapped.tool_parser is not None else ""
        in_json = parser in ("", JSON_TOOLS)
        tagged = parser == JSON_TOOLS or not takes_tools(wrapped)
        texts = (FOLDED_START, FOLDED_END) if tagged else ()
        markers = [self._marker(text) for text in texts]
        lark = lark_of(request.grammar, tools if in_json else None, (markers[0], markers[1]) if tagged else None)
        prefix: list[int] = []
        if tools is not None and forced and not in_json:
            lark, prefix = "", self.encode(forced_prefix(parser, wrapped.tool_call_start, tools), control=False)
        after = wrapped.think_end_tokens if thinks else None
        return AnswerMask(vocabulary, lark, prefix, after)

    def prepare_grammars(self, vocab_size: int) -> None:
        """Makes what every grammar needs, once for a model. It takes up to a second for a large vocabulary and
        holds the interpreter's lock, so it is done while the model is loaded, when no answer runs here.
        """
        try:
            self._vocabulary = Vocabulary(self._wrapped, self.eos, vocab_size)
        except GrammarError as error:
            self._vocabulary = error

    def _vocabulary_for_grammars(self, vocab_size: int) -> Vocabulary:
        """Raises GrammarError where none can be followed."""
        if self._vocabulary is None:
            self.prepare_grammars(vocab_size)
        if not isinstance(self._vocabulary, Vocabulary):
            raise GrammarError(str(self._vocabulary))
        return self._vocabulary

    def _marker(self, text: str) -> str:
        """As a grammar has it. Raises GrammarError where the vocabulary cannot write it: a call would begin with
        the token that stands for unknown text.
        """
        tokens = self.encode(text, control=False)
        if "".join(self.decode(tokens, control=True).split()) != text:
            raise GrammarError(CANNOT_WRITE)
        return marker(text, tokens)

    def _harmony_mask(self, request: GenerationRequest, forced: bool, vocabulary: Vocabulary) -> AnswerMask:
        """What is said follows the grammar, behind the header that says so; a call is begun that must be made."""
        if forced:
            assert request.tools is not None
            prefix = self.encode(harmony.forced_call(request.tools.name), control=False)
            return AnswerMask(vocabulary, "", prefix, None)
        lark = lark_of(request.grammar, None, None)
        return AnswerMask(vocabulary, lark, [], self.encode(harmony.FINAL, control=False))

    def _find_markers(self, chat: bool, thinks: bool, calls: bool) -> Markers:
        """A completion is one text, whatever markers are in it."""
        return (
            markers_of(self._wrapped, self.pieces, thinks=thinks, calls=calls) if chat else no_markers(self.pieces)
        )
