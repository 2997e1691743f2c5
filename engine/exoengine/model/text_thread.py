"""The threads of a worker that make tokens of text and text of tokens, beside the one that computes.

A long text takes a tokenizer seconds. The steps under way go on meanwhile, because tokenizers work without the
interpreter's lock. Decides: what cannot fit the context, before all of it is read; what can never fit the memory
for KV caches, before it waits in the queue; and when a text has taken too long. One short text at a time, and one
long one beside it: whoever sends long texts holds up no other client. What takes too long is left alone
(`deadlines.py`). Touches no MLX.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from exoengine.model.chat_prompt import PromptError, at_least, too_long
from exoengine.model.deadlines import Abandoning, StillBusyError, TooSlowError
from exoengine.protocol import FromWorker, TextAnswered, TextAsked

if TYPE_CHECKING:
    from exoengine.model.text import Tokenizer
    from exoengine.model_files.kv_room import KvRoom

DEADLINE_S: Final = 10.0
"""A million tokens of plain text take 2 s: what takes longer than this is a text that was made to."""

WORK: Final = "making tokens of this text, by the model's chat template and tokenizer,"

LONG_CHARS: Final = 64 * 1024
"""Of all texts of a question: shorter ones take some tens of milliseconds."""

MESSAGE_CHARS: Final = 64
"""That a message counts for by itself: a template takes 10 µs for each."""

MAX_TOKENS: Final = 1_000_000
MAX_PIECES: Final = 50_000
"""Of a text that is only to be told in tokens, and where each token's own text is wanted, too: more of them would
hold the daemon's loop for longer than 50 ms."""


class TextThread:
    """`emit` may be called from its threads."""

    def __init__(self, emit: Callable[[FromWorker], None]) -> None:
        self._emit = emit
        self._model: tuple[Tokenizer, int, KvRoom | None] | None = None
        self._short, self._long = (self._start(name) for name in ("texts", "long texts"))

    def use(
        self, tokenizer: Tokenizer | None, max_context_tokens: int = 0, room: KvRoom | None = None
    ) -> None:  # fmt: skip
        """From any thread: the model whose texts these are from now on; None: there is none."""
        self._model = (tokenizer, max_context_tokens, room) if tokenizer is not None else None

    def ask(self, asked: TextAsked) -> None:
        """From any thread: answered with TextAnswered."""
        (self._long if _size(asked) > LONG_CHARS else self._short).put(asked)

    def _start(self, name: str) -> queue.SimpleQueue[TextAsked]:
        asked: queue.SimpleQueue[TextAsked] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(asked, Abandoning()), name=name, daemon=True).start()
        return asked

    def _run(self, waiting: queue.SimpleQueue[TextAsked], working: Abandoning) -> None:
        while True:
            asked = waiting.get()
            model = self._model
            if model is None:
                self._emit(TextAnswered(asked.ask_id, code="not_ready", problem="no model is loaded here"))
                continue
            self._emit(_answer(working, asked, *model))


def _size(asked: TextAsked) -> int:
    """Characters and tokens in it, and what a template makes of each message."""
    request = asked.request
    if request is None:
        return len(asked.text) + len(asked.tokens)
    size = len(request.prompt or "") + len(request.template)
    if request.tools is not None:
        size += len(request.tools.specs)
    for message in request.messages or ():
        size += MESSAGE_CHARS + len(message.content) + sum(len(call.arguments) for call in message.tool_calls)
    return size


def _answer(
    working: Abandoning, asked: TextAsked, tokenizer: Tokenizer, max_context_tokens: int, room: KvRoom | None
) -> TextAnswered:
    try:
        return working.run(lambda: _done(asked, tokenizer, max_context_tokens, room), DEADLINE_S, WORK)
    except PromptError as error:
        return TextAnswered(asked.ask_id, code=error.code, problem=str(error))
    except StillBusyError as error:
        return TextAnswered(asked.ask_id, code="unavailable", problem=str(error))
    except TooSlowError as error:
        return TextAnswered(asked.ask_id, code="bad_request", problem=str(error))
    except Exception as error:  # a tokenizer raises what its author chose
        first_line = str(error).strip().partition("\n")[0]
        return TextAnswered(asked.ask_id, code="bad_request", problem=f"the tokenizer refuses it: {first_line}")


def _done(
    asked: TextAsked, tokenizer: Tokenizer, max_context_tokens: int, room: KvRoom | None
) -> TextAnswered:  # fmt: skip
    request = asked.request
    if request is not None:
        tokens, thinks = tokenizer.prompt(request, max_context_tokens)
        if len(tokens) >= max_context_tokens:
            raise PromptError("context_length_exceeded", too_long(len(tokens), max_context_tokens))
        most = min(request.max_tokens, max_context_tokens - len(tokens))
        if asked.will_run and room is not None and (refusal := room.refusal(len(tokens), most)):
            raise PromptError("context_length_exceeded", refusal)
        return TextAnswered(asked.ask_id, tuple(tokens), thinks=thinks)
    if asked.tokens:
        return TextAnswered(asked.ask_id, text=tokenizer.decode(asked.tokens, control=True))
    most = MAX_PIECES if asked.wants_pieces else MAX_TOKENS
    told = f"at most {most} tokens can be told" + (" with their texts" if asked.wants_pieces else "")
    if count := at_least([asked.text], partial(tokenizer.encode, control=False), most + 1):
        raise PromptError("bad_request", f"the text has at least {count} tokens; {told}")
    tokens = tokenizer.encode(asked.text, control=asked.control)
    if len(tokens) > most:
        raise PromptError("bad_request", f"the text has {len(tokens)} tokens; {told}")
    pieces = tuple(tokenizer.pieces.piece(token) for token in tokens) if asked.wants_pieces else ()
    return TextAnswered(asked.ask_id, tuple(tokens), pieces=pieces)
