"""How fast tokens come, and from that how long a step may take before it counts as hung.

Speed is that of all requests together; how long a request took is kept for each.

Decides: deadlines, the figures of the heartbeat (`WorkProgress` writes them down), and how long a fault held up the
tokens. Reads the clock.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import msgspec

from exoengine.protocol import CHUNK_TOKENS, NOTHING_MEASURED, StepCosts, SyncSettings
from exoengine.ring.step_messages import Outcome

if TYPE_CHECKING:
    from exoengine.generate.active_request import Work
    from exoengine.generate.request import Generation
    from exoengine.model_files.kv_room import KvRoom
    from exoengine.process.shared_state import SharedState

DEADLINE_FACTOR: Final = 8.0
"""A step this many times as long as the longest of the recent ones is a hang; a noisy machine stays well below."""

COUNT_BYTES_S: Final = 1.0
"""How often the KV caches' bytes are added up: as often as a heartbeat comes."""

RECENT_STEPS: Final = 32
"""Over how many tokens speed is measured: about a second of a usual generation."""


@dataclasses.dataclass
class _Times:
    """Of one request; monotonic."""

    opened: float | None
    """None where this rank was not there from the beginning."""
    first_token: float | None = None
    interrupted: bool = False
    """It was open when the group was lost: its next opening is no new beginning."""


class Pace:
    def __init__(self, settings: SyncSettings, costs: StepCosts = NOTHING_MEASURED) -> None:
        """`costs` are what this rank measured when it loaded."""
        self._settings = settings
        self._measured_token_s = costs.chunk_s / CHUNK_TOKENS
        self._steps_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self._chunks_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self._chunk_token_s: deque[float] = deque(maxlen=2)
        self._last_chunk: tuple[int, int, float] | None = None
        """The request and the end of the chunk that came last, and when; steps of others may have come since."""
        self._last: float | None = None
        self._last_token: float | None = None
        self._interrupted = False
        self._before: float | None = None
        """When the last token came of the requests that were open as this rank began to load other layers."""
        self._gap_ms = 0.0
        self._times: dict[int, _Times] = {}
        self.baseline_tokens_per_s = 0.0

    @property
    def step_deadline_s(self) -> float:
        """A step after a long prefill is never as long as one of its chunks, but it may be longer than usual."""
        usual = max((*self._steps_s, *self._chunks_s), default=0.0)
        return max(self._settings.step_deadline_s, DEADLINE_FACTOR * usual)

    @property
    def chunk_deadline_s(self) -> float:
        usual = max((*self._steps_s, *self._chunks_s), default=0.0)
        return max(self._settings.chunk_deadline_s, DEADLINE_FACTOR * usual)

    @property
    def chunk_token_s(self) -> float:
        """What the slowest stage takes for each token of a chunk; 0 where it is not known. The lower of the last
        two figures: one chunk that something held up says nothing. Before there are any, as after a load or where
        no prompt had two chunks, what this rank's own stage took.
        """
        return min(self._chunk_token_s, default=self._measured_token_s)

    @property
    def tokens_per_s(self) -> float:
        total = sum(self._steps_s)
        return len(self._steps_s) / total if total > 0 else 0.0

    def opened(self, tokens: int, order: int = 0) -> None:
        """A request was opened; with `tokens` of its answer known it goes on after a fault, here or elsewhere."""
        now = time.monotonic()
        if self._before is not None and tokens:
            self._last_token, self._interrupted = self._before, True
        self._before = None
        if self._last is None or not self._times.keys() - {order}:
            self._last = now
        self._last_chunk = None
        before = self._times.get(order)
        if before is not None and before.interrupted:
            before.interrupted = False
        else:
            self._times[order] = _Times(now if tokens == 0 else None)

    def goes_on_from(self, token_at: float | None) -> None:
        """The layers are loaded anew: where a request goes on with them, its next token ends a gap."""
        self._before = token_at

    def closed(self, order: int) -> None:
        """A request is finished."""
        self._times.pop(order, None)

    def interrupted(self, active: bool) -> None:
        """The group is gone: the next token of an active request ends a gap."""
        self._interrupted = active and self._last_token is not None
        self._last = self._last_chunk = None
        if not active:
            self._times.clear()
        for times in self._times.values():
            times.interrupted = True

    def token(self, order: int = 0) -> float:
        """A token is here; gives the milliseconds that the last fault held up the tokens."""
        now = time.monotonic()
        times = self._times.setdefault(order, _Times(None))
        if times.first_token is None:
            times.first_token = now
        elif self._last is not None and not self._interrupted:
            self._steps_s.append(now - self._last)
            if len(self._steps_s) == RECENT_STEPS:
                self.baseline_tokens_per_s = max(self.baseline_tokens_per_s, self.tokens_per_s)
        if self._interrupted and self._last_token is not None:
            self._gap_ms = (now - self._last_token) * 1000
            self._interrupted = False
        self._last = self._last_token = now
        return self._gap_ms

    def chunk(self, end: int | None, order: int = 0) -> None:
        """A pass of the prefill is through all stages: a new chunk up to position `end`, or one that was run again.
        A new one behind another of its prompt came as fast as the slowest stage works, with what it did between.
        """
        now = time.monotonic()
        if self._last is not None:
            self._chunks_s.append(now - self._last)
        if end is not None and self._last_chunk is not None and self._last_chunk[0] == order:
            _, before, at = self._last_chunk
            self._chunk_token_s.append((now - at) / (end - before))
        self._last, self._last_chunk = now, (order, end, now) if end is not None else None

    def durations_s(self, order: int = 0) -> tuple[float, float]:
        """Of an open request: until its first token, and since; zeros where this rank was not there for all."""
        times = self._times.get(order)
        if times is None or times.opened is None:
            return 0.0, 0.0
        now = time.monotonic()
        since = times.first_token if times.first_token is not None else now
        return since - times.opened, now - since


class StageTimes:
    """How long this rank's stage works, and how long it idles while requests are open."""

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self._last: float | None = None
        """When its last pass ended; None where no request has been open since."""

    def ran(self, begun: float, waited_s: float, sequences: int) -> None:
        """A pass is done that began at `begun`; it waited so long for its input. `sequences`: that drew a token."""
        now, figures = time.monotonic(), self._shared.figures
        between_s = begun - self._last if self._last is not None else 0.0
        self._last = now
        self._shared.figures = msgspec.structs.replace(
            figures,
            passes=figures.passes + (sequences > 0),
            sequences=figures.sequences + sequences,
            prefill_passes=figures.prefill_passes + (sequences == 0),
            stage_s=figures.stage_s + max(0.0, now - begun - waited_s),
            idle_s=figures.idle_s + max(0.0, between_s) + waited_s,
        )

    def rests(self) -> None:
        """No request is open."""
        self._last = None


class WorkProgress:
    """Writes into the shared state how the work goes, and which deadline runs."""

    def __init__(self, shared: SharedState, pace: Pace, room: KvRoom) -> None:
        self._shared, self._pace, self._room = shared, pace, room
        self._counted_at = 0.0
        # Another model, or other layers: what was reached before says nothing of these.
        shared.tokens_per_s = shared.baseline_tokens_per_s = shared.last_gap_ms = 0.0
        pace.goes_on_from(shared.token_at)

    def count_token(self, generation: Generation, order: int) -> None:
        """A token of `generation` counts from now on."""
        shared = self._shared
        shared.last_gap_ms = self._pace.token(order)
        shared.token_at = time.monotonic()
        shared.step = len(generation.tokens) + 1
        shared.tokens_per_s = self._pace.tokens_per_s
        shared.baseline_tokens_per_s = self._pace.baseline_tokens_per_s
        generation.prefill_s, generation.decode_s = self._pace.durations_s(order)

    def count_chunk(self, work: Work, outcome: Outcome) -> None:
        """A pass of a prefill is through all stages."""
        new = work.resumption.furthest < outcome.position < len(work.generation.prompt)
        self._pace.chunk(outcome.position if new else None, outcome.order)

    def begin_opening(self) -> None:
        self._shared.begin("opening a request", self._pace.step_deadline_s)

    def begin_pass(self, decoding: bool) -> None:
        deadline = self._pace.step_deadline_s if decoding else self._pace.chunk_deadline_s
        self._shared.begin("a step" if decoding else "a chunk of the prefill", deadline)

    def watch(self, works: Collection[Work], idle: bool) -> None:
        """A piece of work is done. As long as a request is open, the next one has a deadline."""
        self._shared.kv_tokens = sum(work.holding.caches.position for work in works)
        self._shared.positions = tuple((work.generation.order, work.done) for work in works)
        self._count_bytes(works, idle)
        if idle:
            self._shared.token_at = None
            self._shared.end()
            return
        decoding = all(work.holding.caches.position >= work.generation.length - 1 for work in works)
        self._shared.prefilling = not decoding
        deadline = self._pace.step_deadline_s if decoding else self._pace.chunk_deadline_s
        self._shared.begin("the wait for the next step", deadline)

    def kept(self, prompt_cache_bytes: int) -> None:
        """What finished requests have left in memory."""
        self._shared.figures = msgspec.structs.replace(self._shared.figures, prompt_cache_bytes=prompt_cache_bytes)

    def _count_bytes(self, works: Collection[Work], idle: bool) -> None:
        now = time.monotonic()
        if idle or now - self._counted_at >= COUNT_BYTES_S:
            self._counted_at = now
            kv_bytes = sum(self._room.needs(work.holding.caches.position) for work in works)
            self._shared.figures = msgspec.structs.replace(self._shared.figures, kv_bytes=kv_bytes)
