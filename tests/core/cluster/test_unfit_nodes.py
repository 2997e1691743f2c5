"""Who is left out of a ring because it says that it cannot serve: only whom the others can do without."""

from __future__ import annotations

import msgspec

from exod.core.cluster.ring_members import fit_ranks, why_unfit
from exod.model import NodeCard, NodeId
from tests.core.pair.cards import card

NODES = [NodeId(f"{place:016x}") for place in (1, 2, 3)]
FULL = "its worker ended 3 times before it held its layers: No space left on device"


def cards(*memory_mib: int, unfit: int, found_mib: int = 25) -> dict[NodeId, NodeCard]:
    made = {}
    for place, (node, mib) in enumerate(zip(NODES, memory_mib, strict=False)):
        text = FULL if place == unfit else ""
        knows = {"found_model": "m", "found_mib": found_mib} if place != unfit else {}
        made[node] = msgspec.structs.replace(card(place + 1), id=node, memory_mib=mib, unfit=text, **knows)
    return made


def test_the_others_serve_without_it_and_its_own_words_say_why() -> None:
    known = cards(20, 20, 20, unfit=1)
    assert set(fit_ranks(known, "m")) == {NODES[0], NODES[2]}
    (left_out,) = why_unfit(known, fit_ranks(known, "m"))
    assert (left_out.node, left_out.name, left_out.reason) == (NODES[1], "studio2", FULL)
    assert not left_out.stands_by


def test_one_that_the_others_cannot_do_without_stays() -> None:
    known = cards(20, 20, unfit=1)
    assert set(fit_ranks(known, "m")) == set(known)
    assert why_unfit(known, fit_ranks(known, "m")) == ()


def test_nobody_is_left_out_while_nobody_knows_what_the_model_needs() -> None:
    known = cards(20, 20, unfit=1, found_mib=10)
    assert set(fit_ranks(known, "another")) == set(known)


def test_where_all_are_unfit_all_try() -> None:
    known = {node: msgspec.structs.replace(one, unfit=FULL) for node, one in cards(20, 20, unfit=0).items()}
    assert set(fit_ranks(known, "m")) == set(known)
