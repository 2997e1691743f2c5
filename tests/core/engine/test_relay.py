"""What an origin without a rank is sent of its answer, by whom, and again."""

from __future__ import annotations

import msgspec

from exod.core.engine.engine_messages import RelayedOutput
from exod.core.engine.relay import Relay, relays
from exoengine.protocol import TokenOut
from tests.core.engine.engine_samples import A, B, a_plan
from tests.core.engine.engine_samples import C as ORIGIN

RING = (A, B)
TOKEN = TokenOut("r", 0, 7, "x")


def test_an_origin_without_a_rank_is_sent_each_output_and_can_ask_for_it_again() -> None:
    relay = Relay()
    assert relay.take(TOKEN, 0, ORIGIN, RING) == RelayedOutput((TOKEN,), 0)
    assert relay.after("r", 0, ORIGIN) == [RelayedOutput((TOKEN,), 0)]


def test_an_origin_that_hosts_a_rank_by_now_is_sent_nothing_and_what_was_kept_is_dropped() -> None:
    relay = Relay()
    relay.take(TOKEN, 0, ORIGIN, RING)
    assert relay.take(TOKEN, 0, ORIGIN, (*RING, ORIGIN)) is None
    assert relay.after("r", 0, ORIGIN) == []


def test_one_rank_of_the_plan_relays() -> None:
    plan = a_plan(A, B)
    assert [one for one in (A, B, ORIGIN) if relays(one, plan)] == [plan.coordinator]
    assert not relays(A, msgspec.structs.replace(plan, ring=()))
