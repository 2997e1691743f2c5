"""The exhaustive search of a small world: two nodes, three paths, two crashes, every order of everything.

The world is abstract where time is concerned (a path is measured, or declared dead, whenever the search says so;
the lower node may select any usable path whenever it likes, which is more than the real selector ever does) and
real where the protocol is: PairAgreement and `combined` are the product's own. Every datagram that was ever sent
stays in the pool and may be delivered at any time, any number of times, or never: that is loss, duplication,
reordering and replay in one. Every reachable state is checked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from exod.core.pair.pair_agreement import PairAgreement
from exod.core.probe.path import combined
from exod.model import PathId, PathState, Selection

PATHS = tuple(PathId(f"10.0.{place}.1-10.0.{place}.2") for place in range(3))
INIT = (PathState.INIT,) * len(PATHS)
USABLE = (PathState.UP, PathState.DEGRADED)


class Node(NamedTuple):
    incarnation: int
    known: int
    """The peer's incarnation, as known here."""
    own: tuple[PathState, ...]
    order: int
    """Counts the changes that datagrams tell of."""
    peer_own: tuple[PathState, ...]
    peer_order: int
    register: Selection | None
    peer_register: Selection | None


class Message(NamedTuple):
    to_low: bool
    sender_incarnation: int
    destination_incarnation: int
    order: int
    own: tuple[PathState, ...]
    register: Selection | None


class State(NamedTuple):
    low: Node
    high: Node
    pool: frozenset[Message]
    crashes: int
    deaths: int
    measured: frozenset[tuple[bool, int, int, PathId]]
    """(is low, low's incarnation, high's, path): who saw which path UP in which lives."""


class BrokenError(AssertionError):
    pass


def _agreement(node: Node, *, low: bool) -> PairAgreement:
    """The product's own register, in the state of this node."""
    lives = (node.incarnation, node.known) if low else (node.known, node.incarnation)
    agreement = PairAgreement(selects=low, incarnation_low=lives[0], incarnation_high=lives[1])
    agreement.register, agreement.peer_register = node.register, node.peer_register
    return agreement


def _say(state: State, node: Node, *, low: bool) -> State:
    """A node whose state changed has told the other, sooner or later: put it into the pool."""
    message = Message(not low, node.incarnation, node.known, node.order, node.own, node.register)
    state = state._replace(low=node) if low else state._replace(high=node)
    return state._replace(pool=state.pool | {message})


def start() -> State:
    empty = Node(1, 1, INIT, 1, INIT, 0, None, None)
    state = State(empty, empty, frozenset(), 0, 0, frozenset())
    return _say(_say(state, empty, low=True), empty, low=False)


def steps(state: State, *, crashes: int, deaths: int, selections: int) -> Iterator[tuple[str, State]]:
    """Everything that can happen next."""
    for low in (True, False):
        node, other = (state.low, state.high) if low else (state.high, state.low)
        name = "low" if low else "high"
        mutual = node.known == other.incarnation and other.known == node.incarnation
        lives = (node.incarnation, node.known) if low else (node.known, node.incarnation)
        if mutual and PathState.INIT in node.own:
            up = tuple(PathState.UP if one is PathState.INIT else one for one in node.own)
            measured = state.measured | {
                (low, *lives, path) for path, own in zip(PATHS, up, strict=True) if own in USABLE
            }
            yield f"{name} measures", _say(state._replace(measured=measured), _tell(node, own=up), low=low)
        if state.deaths < deaths:
            for place, own in enumerate(node.own):
                if own is PathState.UP:
                    dead = (*node.own[:place], PathState.DEAD, *node.own[place + 1 :])
                    yield (
                        f"{name} declares {place} dead",
                        _say(state._replace(deaths=state.deaths + 1), _tell(node, own=dead), low=low),
                    )
        if state.crashes < crashes:
            born = Node(node.incarnation + 1, node.known, INIT, 1, INIT, 0, None, None)
            yield f"{name} crashes", _say(state._replace(crashes=state.crashes + 1), born, low=low)
    yield from _selections(state, selections)
    for message in state.pool:
        yield from _deliver(state, message)


def _tell(node: Node, **changes: object) -> Node:
    return node._replace(order=node.order + 1, **changes)  # type: ignore[arg-type]


def _selections(state: State, most: int) -> Iterator[tuple[str, State]]:
    low = state.low
    if low.register is not None and low.register.seq >= most:
        return
    for place, path in enumerate(PATHS):
        if low.register is not None and low.register.path == path:
            continue
        if combined(low.own[place], low.peer_own[place]) in USABLE:
            agreement = _agreement(low, low=True)
            agreement.select(path)
            yield f"low selects {place}", _say(state, _tell(low, register=agreement.register), low=True)


def _deliver(state: State, message: Message) -> Iterator[tuple[str, State]]:
    low = message.to_low
    node = state.low if low else state.high
    if message.sender_incarnation < node.known:
        return
    if message.sender_incarnation > node.known:
        node = Node(node.incarnation, message.sender_incarnation, INIT, node.order + 1, INIT, 0, None, None)
    if message.destination_incarnation == node.incarnation:
        agreement = _agreement(node, low=low)
        agreement.observe(message.register)
        node = node._replace(register=agreement.register, peer_register=agreement.peer_register)
        if message.order > node.peer_order:
            node = node._replace(peer_order=message.order, peer_own=message.own)
    before = state.low if low else state.high
    if node == before:
        return
    if (node.own, node.register, node.known) != (before.own, before.register, before.known):
        node = node._replace(order=max(node.order, before.order) + 1)
        yield f"{'low' if low else 'high'} hears", _say(state, node, low=low)
    else:
        yield f"{'low' if low else 'high'} hears", state._replace(low=node) if low else state._replace(high=node)


def _forget(state: State) -> State:
    """Drop what could not change anything any more, whenever it came: different pasts become one state."""
    return state._replace(pool=frozenset(one for one in state.pool if _matters(state, one)))


def _matters(state: State, message: Message) -> bool:
    node = state.low if message.to_low else state.high
    if message.sender_incarnation != node.known:
        return message.sender_incarnation > node.known
    if message.destination_incarnation != node.incarnation:
        return False
    seen = 0 if node.peer_register is None else node.peer_register.seq
    return message.order > node.peer_order or (message.register is not None and message.register.seq > seen)


def check(before: State | None, state: State) -> None:
    """The invariants that this world can break: 1, 2, 3, 4 and 6."""
    agreed: list[Selection] = []
    for low, node in ((True, state.low), (False, state.high)):
        register = node.register
        lives = (node.incarnation, node.known) if low else (node.known, node.incarnation)
        if register is not None and (register.incarnation_low, register.incarnation_high) != lives:
            raise BrokenError(f"4: a register of {register} in the lives {lives}")
        if before is not None:
            old = before.low if low else before.high
            same = (old.incarnation, old.known) == (node.incarnation, node.known)
            if same and old.register is not None and (register is None or register.seq < old.register.seq):
                raise BrokenError(f"1: the register shrank from {old.register} to {register}")
        if not _agreement(node, low=low).agreed or register is None or register.path is None:
            continue
        place = PATHS.index(register.path)
        if combined(node.own[place], node.peer_own[place]) not in USABLE:
            continue  # the register is agreed, the path just died: not called agreed by link.py
        agreed.append(register)
        for end in (True, False):
            if (end, *lives, register.path) not in state.measured:
                raise BrokenError(
                    f"3: agreed on {register}, which {'low' if end else 'high'} never measured in {lives}"
                )
    if len(agreed) == 2:
        one, other = agreed
        same_number = (one.incarnation_low, one.incarnation_high, one.seq) == (
            other.incarnation_low,
            other.incarnation_high,
            other.seq,
        )
        if same_number and one.path != other.path:
            raise BrokenError(f"2: {one} and {other}")


def search(*, crashes: int, deaths: int, selections: int, limit: int = 2_000_000) -> int:
    """Visit every reachable state. Returns how many; raises BrokenError with the way there."""
    first = start()
    came: dict[State, tuple[State, str] | None] = {first: None}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        for name, reached in steps(state, crashes=crashes, deaths=deaths, selections=selections):
            after = _forget(reached)
            if after in came:
                continue
            came[after] = (state, name)
            try:
                check(state, after)
            except BrokenError as error:
                raise BrokenError(f"{error}\n  by: {', '.join(_way(came, after))}") from None
            queue.append(after)
            if len(came) > limit:
                raise RuntimeError(f"more than {limit} states: the world is not small any more")
    return len(came)


def _way(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    names = []
    step = came[state]
    while step is not None:
        state, name = step
        names.append(name)
        step = came[state]
    return names[::-1]
