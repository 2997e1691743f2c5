"""What a node tells of itself once it knows its model."""

from __future__ import annotations

import msgspec
import pytest

from exod.model import ContextSettings, NodeCard, ParallelChoice
from exod.own_card import with_choice, with_newer_choice, with_sizes
from exoengine.model_files.memory_fit import WHOLE_CONTEXT, ModelSizes
from tests.core.pair.cards import card

SIZES = ModelSizes(
    layer_bytes=(10 << 20,) * 4,
    other_bytes=2 << 20,
    kv_bytes_per_token=1024,
    kv_windows=(WHOLE_CONTEXT,) * 4,
    max_context_tokens=4096,
)


def a_card(nodes: str, context: int = 0) -> NodeCard:
    return msgspec.structs.replace(card(1), model="m", nodes=nodes, context=ContextSettings(context))


def test_only_where_fewest_nodes_are_wanted_the_card_says_what_its_own_model_needs() -> None:
    assert with_sizes(a_card("all"), "m", SIZES).model_mib == a_card("all").model_mib
    assert with_sizes(a_card("fewest"), "another", SIZES).model_mib == a_card("fewest").model_mib
    assert with_sizes(a_card("fewest"), "m", SIZES).model_mib == 43


@pytest.mark.parametrize(("context", "needs"), [(1024, 47), (4096, 59), (1_000_000, 59)])
def test_the_context_that_is_set_is_part_of_it(context: int, needs: int) -> None:
    assert with_sizes(a_card("fewest", context), "m", SIZES).model_mib == needs


def test_what_the_model_needs_that_was_found_last_is_said_in_any_case() -> None:
    found = with_sizes(a_card("all"), "another", SIZES)
    assert (found.found_model, found.found_mib) == ("another", 43)


def test_each_choice_is_newer_than_the_last_and_the_newest_goes_round() -> None:
    ranks = (card(1).id, card(2).id)
    first = with_choice(a_card("all"), "tensor", "m", ranks)
    second = with_choice(first, "pipeline", "m", ranks)
    assert second.choice == ParallelChoice(2, "pipeline", "m", ranks)
    other = with_newer_choice(card(2), second)
    assert other == msgspec.structs.replace(card(2), choice=second.choice)
    assert with_newer_choice(other, first) == other
    assert with_newer_choice(other, card(1)) == other
