"""Nodes that pull one model, in virtual time: one has the turn at the hub, also when nodes leave or are refused."""

from __future__ import annotations

import pytest

from exod.core.models.model_events import (
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
from exod.core.models.models_core import (
    HEARD_S,
    MAX_PULLS,
    RETRY_S,
    SETTLE_S,
    START_S,
    ModelsCore,
    newer_record,
)
from exod.core.models.source_choice import HUB, choose_source
from exod.model import NodeId, PullRecord

MODEL = "maker/tiny"
FOLDER = "/models/mine"
TOLD_AFTER_S = 0.05


class World:
    """Some nodes that tell each other everything, each `TOLD_AFTER_S` late."""

    def __init__(self, *names: str, hosts_ranks: bool = True) -> None:
        self.now = 100.0
        self.nodes = {NodeId(name * 16): ModelsCore(NodeId(name * 16), hosts_ranks) for name in names}
        self.asks: dict[NodeId, dict[str, bool]] = {node: {} for node in self.nodes}
        """For each node what is fetched, and whether the hub may be asked for it."""
        self.over: list[tuple[NodeId, FetchOver]] = []
        self.down: set[NodeId] = set()
        self.asked_hub: set[NodeId] = set()

    def __getitem__(self, name: str) -> NodeId:
        return NodeId(name * 16)

    def feed(self, name: str, event: ModelsInput) -> None:
        self._took(self[name], self.nodes[self[name]].handle(event, self.now))

    def _took(self, node: NodeId, commands: list[ModelsCommand]) -> None:
        for command in commands:
            match command:
                case StartFetch(model=model, may_ask_hub=may) | Redirect(model=model, may_ask_hub=may):
                    self.asks[node][model] = may
                    if may:
                        self.asked_hub.add(node)
                case StopFetch(model=model):
                    del self.asks[node][model]
                case FetchOver() as over:
                    self.asks[node].pop(over.model, None)
                    self.over.append((node, over))
        asking = [one for one in self.asks if self.asks[one].get(MODEL) and one not in self.down]
        self.most_at_hub = max(getattr(self, "most_at_hub", 0), len(asking))

    def run(self, for_s: float) -> None:
        end = self.now + for_s
        while self.now < end:
            self.now += TOLD_AFTER_S
            told = {node: (core.fetches(self.now), tuple(core.pulls.values())) for node, core in self.nodes.items()}
            for node, core in self.nodes.items():
                if node in self.down:
                    continue
                others = [one for one in told if one != node and one not in self.down]
                self._took(node, core.handle(PeersNow(frozenset(others)), self.now))
                for other in others:
                    self._took(node, core.handle(PullsHeard(told[other][1]), self.now))
                    self._took(node, core.handle(PeerFetches(other, told[other][0]), self.now))
                self._took(node, core.handle_timer(self.now))

    def run_alone(self, for_s: float) -> None:
        """Nobody is connected."""
        end = self.now + for_s
        while self.now < end:
            self.now += TOLD_AFTER_S
            for node, core in self.nodes.items():
                self._took(node, core.handle(PeersNow(frozenset()), self.now))
                self._took(node, core.handle_timer(self.now))

    def pull(self, name: str, model: str = MODEL, everywhere: bool = False, paused: bool = False) -> None:
        core = self.nodes[self[name]]
        self.feed(name, PullAsked(newer_record(core.pulls, model, self.now, name, everywhere, paused)))

    def states(self, model: str = MODEL) -> list[str]:
        return [
            fetch.state for core in self.nodes.values() for fetch in core.fetches(self.now) if fetch.model == model
        ]


def test_one_of_three_asks_the_hub_and_the_others_take_from_it() -> None:
    world = World("a", "b", "c")
    world.pull("c")
    world.run(SETTLE_S + 1)
    assert {node: asks[MODEL] for node, asks in world.asks.items()} == {
        world["a"]: True,
        world["b"]: False,
        world["c"]: False,
    }
    world.feed("a", FetchEnded(MODEL))
    world.run(1)
    assert world.asked_hub == {world["a"], world["b"]}, "what a lacks right, the next may ask for"
    world.feed("b", FetchEnded(MODEL))
    world.feed("c", FetchEnded(MODEL))
    world.run(1)
    assert world.states() == ["here"] * 3
    assert world.most_at_hub == 1


@pytest.mark.parametrize("found_after_s", [0.2, 1.0, 2.0, 2.9])
@pytest.mark.parametrize("first", ["a", "b"])
def test_nodes_that_start_together_ask_once_although_they_find_each_other_later(
    found_after_s: float, first: str
) -> None:
    """Each is alone at first, and needs the same model."""
    world = World("a", "b", "c")
    for name in (first, *sorted({"a", "b", "c"} - {first})):
        world.nodes[world[name]].begin(world.now)
        world.feed(name, ModelNeeded(MODEL))
        world.run_alone(0.05)
    world.run_alone(found_after_s - 0.15)
    assert not world.asked_hub
    world.run(SETTLE_S + START_S)
    assert world.asked_hub == {world["a"]}
    assert world.most_at_hub == 1


def test_a_peer_that_is_connected_is_heard_before_the_hub_is_asked() -> None:
    core = ModelsCore(NodeId("b" * 16), hosts_ranks=True)
    peer = NodeId("a" * 16)
    core.handle(PeersNow(frozenset({peer})), 100.0)
    core.handle(ModelNeeded(MODEL), 100.0)
    core.handle_timer(100.0 + HEARD_S - 0.1)
    assert not core.fetches(104.9)[0].asks_hub
    due = core.next_deadline()
    assert due == 100.0 + HEARD_S
    core.handle_timer(due)
    assert core.fetches(due)[0].asks_hub, "a peer that says nothing holds nobody up for ever"


def test_a_peer_that_was_heard_holds_nobody_up() -> None:
    core = ModelsCore(NodeId("b" * 16), hosts_ranks=True)
    peer = NodeId("a" * 16)
    core.handle(PeersNow(frozenset({peer})), 100.0)
    core.handle(ModelNeeded(MODEL), 100.0)
    core.handle(PeerFetches(peer, ()), 100.5)
    core.handle_timer(100.0 + SETTLE_S)
    assert core.fetches(101.0)[0].asks_hub


def test_a_failure_is_told_until_the_rank_looks_for_another_model() -> None:
    core = ModelsCore(NodeId("a" * 16), hosts_ranks=True)
    core.handle(ModelNeeded(MODEL), 100.0)
    core.handle(FetchFailed(MODEL, "no_network", "offline"), 101.0)
    core.handle(ModelNotNeeded(MODEL), 101.0)
    assert [fetch.state for fetch in core.fetches(102.0)] == ["failed"]
    assert core.handle(RankLooksFor(MODEL), 103.0) == []
    assert FetchesChanged() in core.handle(RankLooksFor("embedded:count"), 104.0)
    assert core.fetches(105.0) == ()


def test_a_failed_pull_is_told_whatever_the_rank_looks_for() -> None:
    world = World("a")
    world.pull("a")
    world.feed("a", FetchFailed(MODEL, "no_such_model", "there is none"))
    world.feed("a", RankLooksFor("embedded:count"))
    assert world.states() == ["failed"]


def test_when_the_one_at_the_hub_leaves_another_takes_its_turn() -> None:
    world = World("a", "b")
    world.pull("a")
    world.run(SETTLE_S + 1)
    world.down.add(world["a"])
    world.run(1)
    assert world.asks[world["b"]][MODEL]


def test_a_node_that_comes_later_with_a_lower_id_does_not_take_the_turn() -> None:
    world = World("a", "b")
    world.down.add(world["a"])
    world.pull("b")
    world.run(SETTLE_S + 1)
    world.down.clear()
    world.run(SETTLE_S + 1)
    assert not world.asks[world["a"]][MODEL]
    assert world.asks[world["b"]][MODEL]


def test_of_two_that_ask_already_the_lower_goes_on() -> None:
    world = World("a", "b")
    for name in "ab":
        world.down = {world["b" if name == "a" else "a"]}
        world.pull(name)
        world.run(SETTLE_S + 1)
    world.down.clear()
    world.run(1)
    assert world.asks[world["a"]][MODEL]
    assert not world.asks[world["b"]][MODEL]


def test_a_node_without_a_way_to_the_hub_gets_it_from_one_that_has() -> None:
    world = World("a", "b")
    world.pull("a")
    world.run(SETTLE_S + 1)
    world.feed("a", FetchFailed(MODEL, "no_network", "cannot be reached"))
    world.run(1)
    assert world.asks == {world["a"]: {MODEL: False}, world["b"]: {MODEL: True}}
    assert not world.over
    world.feed("b", FetchEnded(MODEL))
    world.feed("a", FetchEnded(MODEL))
    assert world.states() == ["here", "here"]


def test_where_no_node_gets_it_each_says_why_and_tries_again_after_a_minute() -> None:
    world = World("a", "b")
    world.pull("a")
    world.run(SETTLE_S + 1)
    world.feed("a", FetchFailed(MODEL, "no_network", "from a"))
    world.run(1)
    world.feed("b", FetchFailed(MODEL, "no_network", "from b"))
    world.run(1)
    assert world.states() == ["failed", "failed"]
    assert {over.failure for _, over in world.over} == {("no_network", "from a"), ("no_network", "from b")}
    world.run(RETRY_S + SETTLE_S + 1)
    assert any(asks.get(MODEL) for asks in world.asks.values())


def test_a_name_that_the_hub_does_not_know_is_not_tried_again() -> None:
    world = World("a")
    world.pull("a")
    world.run(SETTLE_S + 1)
    world.feed("a", FetchFailed(MODEL, "no_such_model", "check the spelling"))
    world.run(3 * RETRY_S)
    assert world.states() == ["failed"]
    world.pull("a")
    world.run(SETTLE_S + 1)
    assert world.asks[world["a"]] == {MODEL: True}, "a person asks again"


def test_a_pause_stops_all_nodes_and_a_pull_goes_on() -> None:
    world = World("a", "b")
    world.pull("a")
    world.run(SETTLE_S + 1)
    world.pull("b", paused=True)
    world.run(1)
    assert world.asks == {world["a"]: {}, world["b"]: {}}
    assert world.states() == ["paused", "paused"]
    world.pull("b")
    world.run(SETTLE_S + 1)
    assert all(MODEL in asks for asks in world.asks.values())


def test_a_folder_is_never_asked_of_the_hub() -> None:
    world = World("a", "b")
    world.pull("a", FOLDER)
    world.run(SETTLE_S + RETRY_S)
    assert not world.asked_hub
    assert world.asks[world["b"]] == {FOLDER: False}


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_node_without_ranks_takes_part_only_where_all_nodes_do(everywhere: bool) -> None:
    world = World("a", hosts_ranks=False)
    world.pull("a", everywhere=everywhere)
    world.run(SETTLE_S + 1)
    assert bool(world.asks[world["a"]]) is everywhere


def test_what_was_fetched_is_not_fetched_again_after_a_restart_and_what_was_not_goes_on() -> None:
    world = World("a")
    world.pull("a")
    world.run(SETTLE_S + 1)
    record = world.nodes[world["a"]].pulls[MODEL]
    again = ModelsCore(world["a"], True, [record])
    assert any(isinstance(one, StartFetch) for one in again.handle_timer(1.0))
    kept = next(
        one for one in world.nodes[world["a"]].handle(FetchEnded(MODEL), world.now) if isinstance(one, KeepPulls)
    )
    later = ModelsCore(world["a"], True, kept.records, kept.had)
    assert not any(isinstance(one, StartFetch) for one in later.handle_timer(1.0))
    assert [fetch.state for fetch in later.fetches(1.0)] == ["here"]


def test_a_rank_gets_its_answer_also_for_what_was_pulled_before() -> None:
    world = World("a")
    world.pull("a")
    world.run(SETTLE_S + 1)
    world.feed("a", FetchEnded(MODEL))
    world.over.clear()
    world.feed("a", ModelNeeded(MODEL))
    assert MODEL in world.asks[world["a"]]
    world.feed("a", FetchEnded(MODEL))
    assert [over.failure for _, over in world.over] == [None]


def test_a_rank_that_wants_it_no_more_ends_the_fetch_unless_people_want_it() -> None:
    world = World("a")
    world.feed("a", ModelNeeded(MODEL))
    world.run(SETTLE_S + 1)
    world.feed("a", ModelNotNeeded(MODEL))
    assert world.asks[world["a"]] == {}
    assert world.states() == []
    world.pull("a")
    world.feed("a", ModelNeeded(MODEL))
    world.feed("a", ModelNotNeeded(MODEL))
    assert MODEL in world.asks[world["a"]]


def test_the_rate_is_that_of_the_last_seconds() -> None:
    core = ModelsCore(NodeId("a" * 16), True, [PullRecord(MODEL, 1.0, "a")])
    core.handle_timer(0.0)
    for second in range(30):
        core.handle(FetchProgress(MODEL, 1000 * second, 100_000, ("hub",)), float(second))
    (fetch,) = core.fetches(30.0)
    assert (fetch.bytes_per_s, fetch.left_s) == (1000, 71.0)


def test_records_are_bounded() -> None:
    world = World("a")
    for number in range(MAX_PULLS + 10):
        world.now += 1
        world.pull("a", f"maker/m{number}")
    assert len(world.nodes[world["a"]].pulls) == MAX_PULLS
    assert "maker/m0" not in world.nodes[world["a"]].pulls


def test_a_file_comes_from_the_least_busy_node_that_has_it_and_from_the_hub_only_otherwise() -> None:
    offers = {"a": {"1", "2"}, "b": {"2"}}
    assert choose_source("1", offers, {"a": 3}, set(), True) == "a"
    assert choose_source("2", offers, {"a": 1}, set(), True) == "b"
    assert choose_source("2", offers, {}, {("a", "2"), ("b", "2")}, True) == HUB
    assert choose_source("3", offers, {}, set(), True) == HUB
    assert choose_source("3", offers, {}, set(), False) is None
