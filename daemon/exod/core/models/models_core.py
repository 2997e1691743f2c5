"""Which models this node fetches, and when it may ask the hub.

The theory. A command `pull` is a record with a time that every node keeps and passes on; of one model the newest
counts. Each node decides by itself whether it needs the files: because a record says so, or because its rank looks
for the model. All nodes that need a model say so to each other. What a node has, any other takes from it; for the
rest one of them has the turn at the hub: the one that asks already, else the lowest id, after a moment in which
others can be heard. One that the hub refuses, or that cannot reach it, passes its turn on; only when no node is
left does it say why.

Decides that. Never touches a file, a process or a clock: the shell carries out the commands. Times are monotonic
seconds; `at` of a record is Unix seconds. Sizes in bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

from exod.core.models.model_events import (
    EmitFetchEvent,
    FetchEnded,
    FetchesChanged,
    FetchFailed,
    FetchOver,
    FetchProgress,
    KeepPulls,
    ModelNeeded,
    ModelNotNeeded,
    ModelsCommand,
    ModelsInput,
    PeerFetches,
    PeersNow,
    PullAsked,
    PullsHeard,
    RankLooksFor,
    Redirect,
    StartFetch,
    StopFetch,
)
from exod.model import ModelFetch, NodeId, PullRecord

SETTLE_S: Final = 1.0
"""Reports are told at once and take milliseconds; a loop that is busy takes some hundreds."""

START_S: Final = 3.0
"""After a daemon's start, in which nodes that start together find each other: they take one to two."""

HEARD_S: Final = 5.0
"""For a node that is connected to say what it fetches, before the hub is asked without having heard it."""

RETRY_S: Final = 60.0
"""A full disk, a hub that is down: people mend them while we run."""

RATE_WINDOW_S: Final = 10.0
"""Over which the rate is taken: the pauses between files are shorter."""

MAX_PULLS: Final = 64
"""The newest are kept. A cluster has some dozen models on its disks."""

HUB_CODES: Final = frozenset({"no_network", "gated", "no_such_model", "hub_answer", "hub_silent", "download"})
"""Failures of the hub, or of this node's way to it: another node may have more luck."""

FINAL_CODES: Final = frozenset({"no_such_model", "no_weights"})
"""Trying again changes nothing until a person does."""


class _NeededModel:
    """A model that this node needs."""

    def __init__(self, model: str, now: float) -> None:
        self.model, self.since = model, now
        self.by_rank = self.by_pull = False
        self.running = self.asks_hub = self.is_here = False
        self.done_bytes = self.total_bytes = 0
        self.sources: tuple[str, ...] = ()
        self.failure: tuple[str, str] | None = None
        self.retry_at: float | None = None
        self.hub_failure: tuple[str, str] | None = None
        self.hub_again_at = 0.0
        self.seen: deque[tuple[float, int]] = deque()
        self.tenth = -1

    @property
    def is_folder(self) -> bool:
        return self.model.startswith("/")

    @property
    def is_wanted(self) -> bool:
        return (self.by_rank or self.by_pull) and not self.is_here and self.failure is None

    def can_ask_hub(self, now: float) -> bool:
        return self.is_wanted and not self.is_folder and now >= self.hub_again_at

    def progressed(self, event: FetchProgress, now: float) -> None:
        self.done_bytes, self.total_bytes, self.sources = event.done_bytes, event.total_bytes, event.sources
        self.seen.append((now, event.done_bytes))
        while len(self.seen) > 2 and self.seen[0][0] < now - RATE_WINDOW_S:
            self.seen.popleft()

    def bytes_per_s(self) -> int:
        if not self.running or len(self.seen) < 2:
            return 0
        (began, first), (ended, last) = self.seen[0], self.seen[-1]
        return max(0, round((last - first) / (ended - began))) if ended > began else 0

    def report(self, paused: bool, now: float) -> ModelFetch:
        code, text = self.failure or ("", "")
        if self.is_here:
            state = "here"
        elif self.failure is not None:
            state = "failed"
        elif paused and not self.is_wanted:
            state = "paused"
        else:
            state = "fetching" if self.bytes_per_s() or self.asks_hub else "waiting"
            code, text = self.hub_failure or ("", "")
        return ModelFetch(
            self.model, state, self.done_bytes, self.total_bytes, self.bytes_per_s(), self.sources,
            self.asks_hub and self.running, self.can_ask_hub(now), code, text,
        )  # fmt: skip


class ModelsCore:
    """`hosts_ranks`: does this node take part where a pull is not for every node?"""

    def __init__(
        self, me: NodeId, hosts_ranks: bool, pulls: Iterable[PullRecord] = (), had: dict[str, float] | None = None
    ) -> None:
        self._me, self._hosts_ranks = me, hosts_ranks
        self.pulls = {record.model: record for record in pulls}
        self._had = dict(had or {})
        """For each model the time of the record that this node has fulfilled: it is not fetched again for it."""
        self._wants: dict[str, _NeededModel] = {}
        self._others: dict[NodeId, tuple[ModelFetch, ...]] = {}
        self._unheard: frozenset[NodeId] = frozenset()
        """Who is connected, and has not said what it fetches."""
        self._hub_from = float("-inf")
        self._looked_at = float("-inf")

    # --- what is ----------------------------------------------------------------------------------------------

    def fetches(self, now: float) -> tuple[ModelFetch, ...]:
        """What this node has of the models that it was asked for."""
        return tuple(want.report(self._is_paused(model), now) for model, want in sorted(self._wants.items()))

    def _is_paused(self, model: str) -> bool:
        record = self.pulls.get(model)
        return record is not None and record.paused

    def next_deadline(self) -> float | None:
        due = [
            at
            for want in self._wants.values()
            for at in (
                want.retry_at,
                want.since + SETTLE_S,
                want.since + HEARD_S,
                want.hub_again_at,
                self._hub_from,
            )
            if at is not None and at > self._looked_at and not want.is_here
        ]
        return min(due, default=None)

    # --- inputs -----------------------------------------------------------------------------------------------

    def handle(self, event: ModelsInput, now: float) -> list[ModelsCommand]:
        commands: list[ModelsCommand] = []
        match event:
            case PullAsked(record=record):
                commands = self._newer([record])
            case PullsHeard(records=records):
                commands = self._newer(records)
            case RankLooksFor(model=model):
                commands = self._forget_failures_of_others(model)
            case ModelNeeded(model=model):
                self._want(model, now).by_rank = True
                self._had.pop(model, None)  # whether it is still here is found out again
                self._try_anew(model)
            case ModelNotNeeded(model=model):
                if model in self._wants:
                    self._wants[model].by_rank = False
            case PeerFetches(peer=peer, fetches=fetches):
                self._others[peer] = fetches
                self._unheard -= {peer}
            case PeersNow(peers=peers):
                self._others = {peer: found for peer, found in self._others.items() if peer in peers}
                self._unheard = peers - self._others.keys()
            case FetchProgress(model=model) if model in self._wants:
                commands = self._progressed(self._wants[model], event, now)
            case FetchEnded(model=model) if model in self._wants:
                commands = self._ended(self._wants[model])
            case FetchFailed(model=model, code=code, text=text) if model in self._wants:
                commands = self._failed(self._wants[model], code, text, now)
        return [*commands, *self.handle_timer(now)]

    def handle_timer(self, now: float) -> list[ModelsCommand]:
        self._looked_at = now
        self._follow_pulls(now)
        commands: list[ModelsCommand] = []
        for want in list(self._wants.values()):
            if want.retry_at is not None and now >= want.retry_at:
                want.failure = want.retry_at = None
            commands += self._steer(want, now)
            if not (want.by_rank or want.by_pull or want.failure or want.model in self.pulls):
                del self._wants[want.model]
        return commands

    def begin(self, now: float) -> None:
        """The shell begins, or begins anew after an error: what was started has ended."""
        self._hub_from = now + START_S
        for want in self._wants.values():
            want.running = want.asks_hub = False

    def _newer(self, records: Iterable[PullRecord]) -> list[ModelsCommand]:
        """Of two commands of one moment every node keeps the same."""
        changed = False
        for record in records:
            known = self.pulls.get(record.model)
            if known is None or (record.at, record.by, record.paused) > (known.at, known.by, known.paused):
                self.pulls[record.model] = record
                self._try_anew(record.model)
                changed = True
        if not changed:
            return []
        for model in sorted(self.pulls, key=lambda one: -self.pulls[one].at)[MAX_PULLS:]:
            del self.pulls[model]
        return [self._keep(), FetchesChanged()]

    def _keep(self) -> KeepPulls:
        had = {model: at for model, at in self._had.items() if model in self.pulls}
        return KeepPulls(tuple(self.pulls.values()), had)

    def _try_anew(self, model: str) -> None:
        """A person, or the rank, asks again."""
        want = self._wants.get(model)
        if want is not None:
            want.failure = want.retry_at = want.hub_failure = None
            want.hub_again_at = 0.0
            want.is_here = False

    def _forget_failures_of_others(self, model: str) -> list[ModelsCommand]:
        """What the rank could not get before is nobody's trouble any more."""
        over = [
            want.model
            for want in self._wants.values()
            if want.model != model and want.failure and not want.by_rank and want.model not in self.pulls
        ]
        for one in over:
            del self._wants[one]
        return [FetchesChanged()] if over else []

    def _want(self, model: str, now: float) -> _NeededModel:
        return self._wants.setdefault(model, _NeededModel(model, now))

    def _follow_pulls(self, now: float) -> None:
        for model, record in self.pulls.items():
            concerns = record.everywhere or self._hosts_ranks
            if concerns:
                want = self._want(model, now)
                want.is_here = want.is_here or self._had.get(model) == record.at
                want.by_pull = not record.paused and not want.is_here
            elif model in self._wants:
                self._wants[model].by_pull = False

    # --- one model ---------------------------------------------------------------------------------------------

    def _progressed(self, want: _NeededModel, event: FetchProgress, now: float) -> list[ModelsCommand]:
        want.progressed(event, now)
        tenth = 10 * want.done_bytes // want.total_bytes if want.total_bytes else 0
        if tenth <= want.tenth:
            return []
        want.tenth = tenth
        return [FetchesChanged(), EmitFetchEvent("model.fetching", want.report(False, now))]

    def _ended(self, want: _NeededModel) -> list[ModelsCommand]:
        want.running = want.asks_hub = False
        want.is_here, want.failure = True, None
        commands: list[ModelsCommand] = []
        if (record := self.pulls.get(want.model)) is not None and not record.paused:
            self._had[want.model] = record.at
            commands.append(self._keep())
        if want.total_bytes:
            want.done_bytes = want.total_bytes
            commands.append(EmitFetchEvent("model.here", want.report(False, 0.0)))
        return [*commands, FetchOver(want.model, None), FetchesChanged()]

    def _failed(self, want: _NeededModel, code: str, text: str, now: float) -> list[ModelsCommand]:
        asked_hub = want.asks_hub
        want.running = want.asks_hub = False
        if asked_hub and code in HUB_CODES:
            want.hub_failure, want.hub_again_at = (code, text), now + RETRY_S
            if self._helpers(want.model):
                return [FetchesChanged()]
        return self._give_up(want, code, text, now)

    def _give_up(self, want: _NeededModel, code: str, text: str, now: float) -> list[ModelsCommand]:
        want.failure = (code, text)
        want.retry_at = now + RETRY_S if code not in FINAL_CODES and want.by_pull else None
        commands: list[ModelsCommand] = [StopFetch(want.model)] if want.running else []
        want.running = want.asks_hub = False
        event = EmitFetchEvent("model.failed", want.report(False, now))
        return [*commands, FetchOver(want.model, (code, text)), event, FetchesChanged()]

    def _helpers(self, model: str) -> list[NodeId]:
        """Nodes from which it may still come: they have it, or can ask the hub for it."""
        return [
            peer
            for peer, fetches in self._others.items()
            for fetch in fetches
            if fetch.model == model and (fetch.state == "here" or fetch.asks_hub or fetch.can_ask_hub)
        ]

    def _steer(self, want: _NeededModel, now: float) -> list[ModelsCommand]:
        """Starts, stops or redirects what runs for it."""
        if not want.is_wanted:
            if not want.running:
                return []
            want.running = want.asks_hub = False
            return [StopFetch(want.model), FetchesChanged()]
        if want.hub_failure is not None and now < want.hub_again_at and not self._helpers(want.model):
            return self._give_up(want, *want.hub_failure, now)
        may_ask = self._has_turn(want, now)
        if want.running and may_ask == want.asks_hub:
            return []
        started, want.running, want.asks_hub = not want.running, True, may_ask
        if started:
            want.tenth = -1
            want.seen.clear()
            return [StartFetch(want.model, may_ask), FetchesChanged()]
        return [Redirect(want.model, may_ask), FetchesChanged()]

    def _has_turn(self, want: _NeededModel, now: float) -> bool:
        if not want.can_ask_hub(now):
            return False
        rivals = {
            peer: fetch for peer, fetches in self._others.items() for fetch in fetches if fetch.model == want.model
        }
        asking = [peer for peer, fetch in rivals.items() if fetch.asks_hub]
        if want.asks_hub:
            return not any(peer < self._me for peer in asking)
        if asking or now < max(want.since + SETTLE_S, self._hub_from):
            return False
        if self._unheard and now < want.since + HEARD_S:
            return False
        return not any(peer < self._me and fetch.can_ask_hub for peer, fetch in rivals.items())


def newer_record(
    pulls: dict[str, PullRecord], model: str, at: float, by: str, everywhere: bool, paused: bool
) -> PullRecord:
    """What a command of now becomes: later than what is known, whatever this host's clock says."""
    known = pulls.get(model)
    later = at if known is None else max(at, known.at + 0.001)
    if known is not None and paused:
        return msgspec.structs.replace(known, at=later, by=by, paused=True)
    return PullRecord(model, later, by, everywhere, paused)
