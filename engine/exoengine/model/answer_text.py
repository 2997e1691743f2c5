"""The text of one answer, token by token: what is said, what is thought, and what is called.

Decides: which of the three a token's text belongs to (by the markers that mlx-lm knows of the model), when a stop
string has ended the answer, and what must wait: a possible beginning of a marker or a stop string, and a character
of which bytes lack. Control tokens belong to no text. All of it depends on the tokens alone, so every rank finds
the same. Computes nothing with MLX.

Stop strings are looked for in what is said, not in what is thought or called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from mlx_lm.generate import TextStateMachine, make_text_state_machine

from exoengine.model import harmony
from exoengine.model.harmony import is_harmony
from exoengine.model.pieces import Pieces
from exoengine.model.tool_calls import LONGEST_HEAD_CHARS, CallReader
from exoengine.protocol import CallDelta

SAID: Final = "normal"
THOUGHT: Final = "reasoning"
CALLED: Final = "tool"
"""mlx-lm's names for the three."""

FOLDED_START, FOLDED_END = "<tool_call>", "</tool_call>"
"""What a model is asked to put around a call where its template knows no tools."""


@dataclasses.dataclass(frozen=True)
class TextStep:
    """What one token added: `text` to show now; `stopped` where it completed a stop string, or the one call that an
    answer may hold. `shows` tells whether the token belongs to what is said.
    """

    text: str
    stopped: bool = False
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    shows: bool = True


class StopStrings:
    """Text that could be a stop string's start is held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(string for string in stop if string)
        self._held = ""
        self.found = ""
        """The one that ended the text."""

    def take(self, segment: str) -> str:
        """What can be shown; nothing more once a stop string was found."""
        if self.found:
            return ""
        text = self._held + segment
        ends = [text.find(string) for string in self._stop]
        found = min((end for end in ends if end >= 0), default=-1)
        if found >= 0:
            self.found = next(string for string in self._stop if text.startswith(string, found))
            self._held = ""
            return text[:found]
        keep = max((_overlap(text, string) for string in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """The length of the longest end of `text` that is a proper start of `string`."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0


@dataclasses.dataclass(frozen=True)
class Markers:
    """How one model marks what it thinks and calls."""

    machine: Any
    """mlx-lm's TextStateMachine."""
    control: frozenset[int]
    """Control tokens that are no part of any marker."""
    initial: str


def no_markers(pieces: Pieces) -> Markers:
    return Markers(TextStateMachine(), pieces.control, SAID)


def _harmony(pieces: Pieces) -> Markers:
    joined = "\n".join([*harmony.TOKENS, *(text for edges in harmony.TRANSITIONS.values() for text, _ in edges)])
    control = frozenset(token for token in pieces.control if pieces.name(token) not in joined)
    return Markers(TextStateMachine(harmony.TRANSITIONS), control, harmony.HEADER)


def markers_of(wrapped: Any, pieces: Pieces, *, thinks: bool, calls: bool) -> Markers:
    """`wrapped` is mlx-lm's tokenizer. `thinks`: the prompt has opened the model's reasoning. `calls`: it was told
    of tools.
    """
    if is_harmony(wrapped):
        return _harmony(pieces)
    initial = wrapped.response_initial_state or (THOUGHT if thinks else SAID)
    if wrapped.response_transitions or (calls and wrapped.has_tool_calling):
        machine = make_text_state_machine(wrapped)
    else:
        edges: dict[str, list[tuple[str, str]]] = {SAID: [(text, SAID) for text in wrapped.structural_markers]}
        if wrapped.has_thinking:
            edges[SAID].append((wrapped.think_start, THOUGHT))
            edges[THOUGHT] = [(wrapped.think_end, SAID)]
        if calls:
            edges[SAID].append((FOLDED_START, CALLED))
            edges[CALLED] = [(FOLDED_END, SAID)]
        machine = TextStateMachine({state: found for state, found in edges.items() if found} or None)
    texts = [wrapped.think_start, wrapped.think_end, *wrapped.structural_markers]
    texts += [wrapped.tool_call_start, wrapped.tool_call_end] if calls else []
    texts += [text for found in wrapped.response_transitions.values() for text, _ in found]
    joined = "\n".join(text for text in texts if text)
    control = frozenset(token for token in pieces.control if pieces.name(token) not in joined)
    return Markers(machine, control, initial)


class AnswerText:
    """One answer. `reader` reads its calls; None where the model was told of no tools."""

    def __init__(
        self, pieces: Pieces, markers: Markers, stop: Sequence[str], reader: CallReader | None, *,
        goes_on: bool, parallel: bool = True,
    ) -> None:  # fmt: skip
        """`goes_on`: the answer continues a text, so that its first space is a part of it."""
        self._pieces, self._markers = pieces, markers
        self._decoder = pieces.decoder(keep_first_space=goes_on)
        self._state = markers.machine.make_state(markers.initial)
        self._at = markers.initial
        self._stop = StopStrings(stop)
        self._reader = reader
        self._parallel = parallel
        self._one_call_made = False
        self._bare = reader is not None
        """May all of the answer still be one call in JSON, without markers?"""
        self._bare_text = ""
        self._thought_newlines = ""
        self._at_seam = markers.initial == THOUGHT
        """Newlines beside the markers of what is thought or called belong to no text."""
        self.thought_tokens = 0

    def add(self, token: int) -> TextStep:
        before = self._at
        if token in self._markers.control and before != CALLED:
            return TextStep("", shows=False)
        step = self._take(self._decoder.add(token))
        self.thought_tokens += before == THOUGHT or self._at == THOUGHT
        shows = before == SAID == self._at and token not in self._pieces.control
        return dataclasses.replace(step, shows=shows and not self._bare_is_call)

    @property
    def stop_string(self) -> str:
        """The stop string that ended the answer, if one did."""
        return self._stop.found

    def finish(self, *, cut: bool) -> TextStep:
        """At the end of the tokens: what was held back. `cut`: the answer was ended by its length."""
        step = self._take(self._decoder.finish())
        self._state, rest, state = TextStateMachine.flush(self._state)
        said, thought, calls = [step.text], [step.reasoning], list(step.calls)
        if state == SAID and rest:
            said.append(self._say(rest, calls))
        elif state == THOUGHT:
            thought.append(self._think(rest))
        elif state == CALLED:
            self._call(rest, calls)
            said.append(self._end_call(calls, cut=cut))
        said.append(self._end_bare(calls))
        if not self._stop.found:
            said.append(self._stop.finish())
        return TextStep("".join(said), bool(self._stop.found), "".join(thought), tuple(calls))

    def _take(self, text: str) -> TextStep:
        self._state, segments = TextStateMachine.split(self._state, text)
        said: list[str] = []
        thought: list[str] = []
        calls: list[CallDelta] = []
        for at, (state, segment) in enumerate(segments):
            if at > 0:
                self._turn(segments[at - 1][0], state, said, calls)
            if state == SAID:
                said.append(self._say(segment, calls))
            elif state == THOUGHT:
                thought.append(self._think(segment))
            elif state == CALLED:
                self._call(segment, calls)
        self._at = segments[-1][0] or SAID
        stopped = bool(self._stop.found) or self._one_call_made
        return TextStep("".join(said), stopped, "".join(thought), tuple(calls))

    def _turn(self, before: str, state: str, said: list[str], calls: list[CallDelta]) -> None:
        """A marker was passed."""
        self._at_seam = state == THOUGHT or before in (THOUGHT, CALLED)
        if before == THOUGHT:
            self._thought_newlines = ""
        if before == CALLED:
            said.append(self._end_call(calls, cut=False))

    # --- what is said -----------------------------------------------------------------------------------

    def _say(self, text: str, calls: list[CallDelta]) -> str:
        if self._at_seam:
            text = text.lstrip("\n")
            self._at_seam = not text
        if self._bare and text:
            text = self._say_or_call(text, calls)
        return self._stop.take(text)

    def _say_or_call(self, text: str, calls: list[CallDelta]) -> str:
        """The beginning of an answer that may be a call without markers."""
        assert self._reader is not None
        begun = self._reader.is_telling
        self._bare_text += text
        if not begun and (self._bare_text.lstrip()[:1] not in ("", "{") or self._reader.count):
            return self._no_call()
        calls += self._reader.feed(text)
        if self._reader.has_ended:
            self._one_call_made = not self._parallel
        if not self._reader.is_telling and len(self._bare_text) > LONGEST_HEAD_CHARS:
            return self._no_call()
        return ""

    @property
    def _bare_is_call(self) -> bool:
        return self._bare and self._reader is not None and self._reader.is_telling

    def _no_call(self) -> str:
        assert self._reader is not None
        self._bare = False
        self._reader.drop()
        text, self._bare_text = self._bare_text, ""
        return text

    def _end_bare(self, calls: list[CallDelta]) -> str:
        if not self._bare or not self._bare_text:
            return ""
        assert self._reader is not None
        self._bare = False
        if self._reader.is_telling:
            self._reader.close()
            return ""
        return self._stop.take(self._no_call())

    # --- what is thought, what is called ----------------------------------------------------------------

    def _think(self, text: str) -> str:
        """Newlines wait for what follows: those before the end of the reasoning are the template's."""
        if self._at_seam:
            text = text.lstrip("\n")
            self._at_seam = not text
        text = self._thought_newlines + text
        shown = text.rstrip("\n")
        self._thought_newlines = text[len(shown) :]
        return shown

    def _call(self, text: str, calls: list[CallDelta]) -> None:
        if self._reader is not None:
            self._bare = False
            calls += self._reader.feed(text)

    def _end_call(self, calls: list[CallDelta], *, cut: bool) -> str:
        """What was between the markers and is no call is shown as it was written."""
        if self._reader is None:
            return ""
        text = self._reader.text
        found = self._reader.close()
        if found is None:
            return "" if cut else self._stop.take(text)
        calls += found
        self._one_call_made = not self._parallel
        return ""
