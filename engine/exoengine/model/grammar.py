"""What an answer may be, as a mask over the vocabulary: JSON that follows a schema, or a call that must be made.

The mask of a token is a function of the tokens before it, so that a step that is run again draws the same, on
whichever rank. llguidance follows the text; it is given the tokens that it has not seen, and begins anew where the
answer went back. Decides: where in an answer the grammar begins (after what the model thinks), and what it is made
of. Nothing is evaluated here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from exoengine.model.tool_calls import function_of
from exoengine.protocol import Grammar, Tools

WHITESPACE: Final = r"( |\n[ \t]{0,24})?"
"""Between the parts of JSON: a space, or a new line with an indent. Without a bound a small model may write blanks
until its limit."""

WIDEST: Final = 2**53 - 1
"""The widest whole number that all readers of JSON agree on (RFC 8259, 6)."""

NUMBER_WORDS: Final = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const"}
)
LITERAL_WORDS: Final = frozenset({"enum", "const", "default", "examples"})
"""Of JSON Schema: what bounds a number, and what holds values and no schemas."""

XML_CODER: Final = "qwen3_coder"
JSON_TOOLS: Final = "json_tools"
"""mlx-lm's names of parsers whose form of a call is known here beyond its marker."""


CANNOT_WRITE: Final = "this model's vocabulary cannot write what is asked for"


class GrammarError(Exception):
    """This grammar cannot be followed with this model; the text is one line for people."""


class Vocabulary:
    """A model's tokens, as llguidance knows them."""

    def __init__(self, wrapped: Any, eos: frozenset[int], size: int) -> None:
        """`wrapped` is mlx-lm's tokenizer; `size` that of the model's logits, 0 where it is not known."""
        self.eos = sorted(eos)
        try:
            text = wrapped._tokenizer.backend_tokenizer.to_str()
            known = max(size, len(wrapped))
            plain = LLTokenizer(text, n_vocab=known, eos_token=self.eos, slices=[])
            # In two calls: each holds the interpreter's lock, and heartbeats are sent between them.
            self.tokens = plain.with_slices(LLTokenizer.general_slices())
        except Exception as error:  # a tokenizer that is no Rust one, or one that llguidance cannot read
            first_line = str(error).strip().partition("\n")[0]
            raise GrammarError(f"this model's tokenizer cannot follow a grammar: {first_line}") from error


class AnswerMask:
    """Of one answer: what may come next."""

    def __init__(
        self, vocabulary: Vocabulary, lark: str, prefix: Sequence[int], after: Sequence[int] | None
    ) -> None:
        """`prefix` are tokens that must come first; the grammar `lark` follows (empty: anything). `after` are the
        tokens behind which both begin, None: at once. Raises GrammarError.
        """
        self._vocabulary, self._lark, self._prefix, self._after = vocabulary, lark, list(prefix), after
        self._matcher: LLMatcher | None = None
        self._taken: list[int] = []
        if lark:
            self._restart()
            first = self._allowed()
            if np.isin(first, vocabulary.eos).all():
                raise GrammarError(CANNOT_WRITE)

    def at(self, tokens: Sequence[int], width: int) -> Any:
        """What is added to the logits (`width` of them) of the token after `tokens`; None where anything may be."""
        start = self._start(tokens)
        if start is None:
            return None
        answer = list(tokens[start:])
        if len(answer) < len(self._prefix):
            return _bias([self._prefix[len(answer)]], width)
        if not self._lark:
            return None
        self._follow(answer[len(self._prefix) :])
        return _bias(self._allowed(), width)

    def _start(self, tokens: Sequence[int]) -> int | None:
        after = self._after
        if after is None:
            return 0
        length = len(after)
        for at in range(len(tokens) - length + 1):
            if list(tokens[at : at + length]) == list(after):
                return at + length
        return None

    def _follow(self, answer: list[int]) -> None:
        if answer[: len(self._taken)] != self._taken:
            self._restart()
        matcher, new = self._matcher, answer[len(self._taken) :]
        if matcher is not None and new and not matcher.is_stopped():
            matcher.consume_tokens(new)
        self._taken = answer

    def _restart(self) -> None:
        self._matcher = LLMatcher(self._vocabulary.tokens, self._lark, log_level=0)
        self._taken = []
        if self._matcher.is_error():
            raise GrammarError(" ".join(self._matcher.get_error().split())[:300])

    def _allowed(self) -> Sequence[int] | np.ndarray[Any, Any]:
        """The tokens that may come next: after the end, and where nothing else could, those that end an answer."""
        matcher = self._matcher
        assert matcher is not None
        if matcher.is_stopped() or matcher.is_error():
            return self._vocabulary.eos
        try:
            mask = matcher.compute_bitmask()
        except (RuntimeError, ValueError):  # beyond llguidance's own bounds: the answer ends here, on every replay
            return self._vocabulary.eos
        bits = np.frombuffer(mask, dtype=np.uint8)
        found = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        return found if found.size else self._vocabulary.eos


def _bias(allowed: Sequence[int] | np.ndarray[Any, Any], width: int) -> Any:
    bias = np.full(width, -np.inf, dtype=np.float32)
    tokens = np.asarray(allowed, dtype=np.int64)
    bias[tokens[tokens < width]] = 0.0
    return mx.array(bias)


def lark_of(grammar: Grammar | None, tools: Tools | None, markers: tuple[str, str] | None) -> str:
    """The text that an answer may be; empty: any. Calls stand between `markers`, as Lark has them, if any."""
    rules, ways = [], []
    if grammar is not None:
        schema = {"type": "object"} if grammar.kind == "json_object" else json.loads(grammar.schema)
        rules.append(f"answer: {_json(schema)}")
        ways.append("answer")
    if tools is not None and (grammar is not None or tools.choice != "auto"):
        rules.append(f"call: {_json(_call_schema(tools, 'arguments' if markers else 'parameters'))}")
        one = rf"{markers[0]} /\n?/ call /\n?/ {markers[1]}" if markers else "call"
        rules.append(f"calls: {one}")  # one: a small model that may go on with another call never ends
        ways = ["calls"] if tools.choice != "auto" else [*ways, "calls"]
    return "\n".join(["%llguidance {}", f"start: {' | '.join(ways)}", *rules]) if ways else ""


def marker(text: str, tokens: Sequence[int]) -> str:
    """A marker as Lark has it: llguidance takes one that is a token of its own for no text."""
    return f"<[{tokens[0]}]>" if len(tokens) == 1 else json.dumps(text)


def _json(schema: Any) -> str:
    if not isinstance(schema, dict):
        schema = {} if schema else {"not": {}}
    return "%json " + json.dumps({**_bounded(schema), "x-guidance": {"whitespace_pattern": WHITESPACE}})


def _bounded(schema: Any) -> Any:
    """With whole numbers that every reader keeps where the schema sets no bound: else a model may write digits for
    ever.
    """
    if isinstance(schema, list):
        return [_bounded(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    bounds = {"minimum": -WIDEST, "maximum": WIDEST}
    free = schema.get("type") == "integer" and not schema.keys() & NUMBER_WORDS
    inner = {name: part if name in LITERAL_WORDS else _bounded(part) for name, part in schema.items()}
    return {**inner, **(bounds if free else {})}


def _call_schema(tools: Tools, arguments: str) -> dict[str, Any]:
    functions = [function_of(spec) for spec in json.loads(tools.specs)]
    if tools.choice == "named":
        functions = [function for function in functions if function.get("name") == tools.name]
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    arguments: _moved(_arguments(function), f"#/anyOf/{at}/properties/{arguments}"),
                },
                "required": ["name", arguments],
                "additionalProperties": False,
            }
            for at, function in enumerate(functions)
        ]
    }


def _moved(schema: Any, place: str) -> Any:
    """With references to its own parts, wherever it stands in another schema now."""
    if isinstance(schema, list):
        return [_moved(part, place) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: place + part[1:]
        if name == "$ref" and isinstance(part, str) and part.startswith("#")
        else _moved(part, place)
        for name, part in schema.items()
    }


def _arguments(function: dict[str, Any]) -> Any:
    schema = function.get("parameters") or {}
    return {"type": "object", **schema}


def forced_prefix(parser: str, start: str, tools: Tools) -> str:
    """How a call begins that must be made in a form of which no grammar is known here."""
    if parser == XML_CODER and tools.choice == "named":
        return f"{start}\n<function={tools.name}>\n"
    return start
