"""Where ranks go on after a fault, and how a sequence is cut: the pure parts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exoengine.embedded import model_folder
from exoengine.generate.request import Generation, accept
from exoengine.generate.resume import resume
from exoengine.model.text import Tokenizer
from exoengine.protocol import GenerationRequest, RequestFailed, Sampling
from exoengine.ring.pass_log import SINGLY, PassLog, pass_end
from exoengine.ring.step_messages import CachedSequence, Standing

NOTHING = PassLog()
PROMPT_END = 2000
END = 2100
LONG = PassLog(((PROMPT_END, 512), (END + 1, SINGLY)))


def standing(position: int, **known: Any) -> Standing:
    said: dict[str, Any] = {
        "order": 1, "request_id": "q", "tokens": (), "likelihoods": (), "cancelled": False, "started": True,
        "cached_tokens": 0,
        "pass_log": LONG, "can_trim": True, "marks": (), "sent_tokens": position,
    }  # fmt: skip
    return Standing(position=position, **(said | known))


def fresh(*sources: CachedSequence) -> Standing:
    """Of a rank that opens the request for the first time."""
    return standing(0, started=False, pass_log=NOTHING, sources=sources)


def passes(pass_log: PassLog, end: int) -> list[tuple[int, int]]:
    """Where each begins and ends."""
    found, start = [], 0
    while start < end:
        until, grain = pass_log.next_pass(start)
        until = min(until, end)
        found += [(one, one + 1) for one in range(start, until)] if grain == SINGLY else [(start, until)]
        start = until
    return found


def test_only_the_replaced_rank_runs_again() -> None:
    for victim in range(3):
        standings = [standing(2050), standing(2050), standing(2050)]
        standings[victim] = standing(0, started=False)
        found = resume(standings, PROMPT_END, END)
        assert found.starts == tuple(0 if rank == victim else 2050 for rank in range(3))


def test_two_replaced_ranks_feed_each_other() -> None:
    assert resume([standing(2050), standing(0), standing(0)], PROMPT_END, END).starts == (2050, 0, 0)
    assert resume([standing(0), standing(2050), standing(0)], PROMPT_END, END).starts == (0, 2050, 0)


def test_a_fault_in_the_prefill_costs_no_chunk_that_any_rank_has_done() -> None:
    found = resume([standing(1536), standing(1024), standing(512)], PROMPT_END, END)
    assert found.starts == (1536, 1024, 512)
    assert found.reached == 1536


def test_where_little_was_kept_the_rank_before_goes_back_to_it() -> None:
    survivors = standing(2050, sent_tokens=1024)
    assert resume([survivors, standing(0)], PROMPT_END, END).starts == (1024, 0)
    stuck = standing(2050, sent_tokens=1024, can_trim=False, marks=(2049, 2050))
    assert resume([stuck, standing(0)], PROMPT_END, END).starts == (0, 0)


def test_a_rank_ahead_of_the_last_known_token_goes_back_to_its_mark() -> None:
    ahead = standing(END + 1, can_trim=False, marks=(END - 1, END))
    assert resume([ahead, standing(END)], PROMPT_END, END).starts == (END, END)


def test_ranks_that_are_all_ahead_go_back_together() -> None:
    assert resume([standing(END + 1), standing(END + 1), standing(0)], PROMPT_END, END).starts == (END, END, 0)
    ahead = standing(END + 1, can_trim=False, marks=(END - 3, END - 1, END + 1))
    assert resume([ahead, ahead], PROMPT_END, END).starts == (END - 1, END - 1)


def test_the_first_opening_uses_what_every_rank_has_of_an_earlier_turn() -> None:
    earlier = PassLog(((700, 512), (800, SINGLY)))
    offers = [fresh(CachedSequence(0, 760, earlier)), fresh(CachedSequence(0, 740, earlier))]
    found = resume(offers, PROMPT_END, PROMPT_END)
    assert (found.starts, found.cached_tokens) == ((740, 740), 740)
    assert found.pass_log == PassLog(((700, 512), (740, SINGLY)))
    alone = resume([offers[0], fresh()], PROMPT_END, PROMPT_END)
    assert (alone.starts, alone.pass_log, alone.cached_tokens) == ((0, 0), PassLog(), 0)


def test_of_many_earlier_sequences_the_one_that_all_ranks_have_most_of_is_used() -> None:
    pass_log = PassLog(((1024, 512),))
    short, long, lost = (
        CachedSequence(3, 512, pass_log),
        CachedSequence(4, 1024, pass_log),
        CachedSequence(5, 1024, pass_log),
    )
    found = resume([fresh(short, long, lost), fresh(short, long)], PROMPT_END, PROMPT_END)
    assert (found.starts, found.source) == ((1024, 1024), 4)
    cut_otherwise = CachedSequence(4, 1024, PassLog(((1024, 256),)))
    found = resume([fresh(short, long), fresh(short, cut_otherwise)], PROMPT_END, PROMPT_END)
    assert (found.starts, found.source) == ((512, 512), 3)


def test_caches_that_came_about_in_another_way_are_not_used() -> None:
    other = standing(1024, pass_log=PassLog(((512, 512), (600, SINGLY), (PROMPT_END, 512))), started=False)
    assert resume([standing(2050), other], PROMPT_END, END).starts == (2050, 0)


positions = st.sampled_from([0, 512, 1024, 1536, 2000, 2001, 2040, 2099, 2100, 2101])


@given(st.lists(st.tuples(positions, positions, st.booleans()), min_size=1, max_size=5))
def test_every_rank_can_reach_its_place_and_is_fed_there(ranks: list[tuple[int, int, bool]]) -> None:
    standings = [
        standing(at, sent_tokens=min(sent, at), can_trim=trims, marks=() if trims else tuple(range(at - 2, at + 1)))
        for at, sent, trims in ranks
    ]
    found = resume(standings, PROMPT_END, END)
    assert found.reached <= END
    for one, start in zip(standings, found.starts, strict=True):
        assert start in (0, one.position, *one.marks) or (one.can_trim and start < one.position)
    for (before, after), sender in zip(itertools.pairwise(found.starts), standings, strict=False):
        assert all(
            before <= token or token < min(sender.sent_tokens, before) for token in range(after, found.reached)
        )
    if all(trims and sent >= at for at, sent, trims in ranks):
        assert found.reached == min(END, max(at for at, _, _ in ranks))


grains = st.sampled_from([SINGLY, 32, 128, 512])
stretches = st.lists(st.tuples(st.integers(1, 1400), grains), max_size=4)


def run(stretches: list[tuple[int, int]], pass_log: PassLog = NOTHING) -> PassLog:
    """What is known after stretches of so many tokens were run, step by step."""
    for tokens, grain in stretches:
        end = pass_log.end + tokens
        while pass_log.end < end:
            pass_log = pass_log.ran(pass_log.end, pass_end(pass_log.end, grain, end), grain)
    return pass_log


@given(stretches, st.integers(0, 3000), stretches)
def test_what_goes_on_from_a_boundary_is_cut_as_its_stem(
    ran: list[tuple[int, int]], wanted: int, more: list[tuple[int, int]]
) -> None:
    pass_log = run(ran)
    position = pass_log.boundary(wanted)
    assert 0 <= position <= wanted
    stem = passes(pass_log, position)
    assert stem == [one for one in passes(pass_log, pass_log.end) if one[0] < position]
    branch = run(more, pass_log.up_to(position))
    assert passes(branch, position) == stem
    assert branch.agrees(pass_log, position)


@given(stretches)
def test_what_is_run_again_as_it_was_changes_nothing(ran: list[tuple[int, int]]) -> None:
    pass_log = run(ran)
    start = 0
    while start < pass_log.end:
        until, grain = pass_log.next_pass(start)
        assert pass_log.ran(start, until, grain) == pass_log
        start = until


@given(stretches, stretches, st.integers(0, 3000))
def test_courses_that_agree_are_cut_alike(
    one: list[tuple[int, int]], other: list[tuple[int, int]], position: int
) -> None:
    if run(one).agrees(run(other), position):
        assert passes(run(one), position) == passes(run(other), position)


@pytest.mark.parametrize("bias", [{}, {9: -100.0}])
def test_a_request_that_is_begun_anew_has_the_tokens_that_its_client_was_given(bias: dict[int, float]) -> None:
    tokenizer = Tokenizer(model_folder("embedded:count"), None)
    asked = GenerationRequest("q", 40, prompt=(5, 6, 7), sampling=Sampling(logit_bias=bias))
    begun = accept(1, asked, (20, 21), tokenizer, 1010, 4096, lambda _: None)
    assert isinstance(begun, Generation)
    assert begun.tokens == [20, 21]


@pytest.mark.parametrize(
    ("prompt", "bias", "field"), [((5, 5000), {}, "prompt"), ((5,), {5000: 1.0}, "logit_bias")]
)
def test_a_token_outside_the_vocabulary_is_refused_with_its_field(
    prompt: tuple[int, ...], bias: dict[int, float], field: str
) -> None:
    tokenizer = Tokenizer(model_folder("embedded:count"), None)
    asked = GenerationRequest("q", 40, prompt=prompt, sampling=Sampling(logit_bias=bias))
    refused = accept(1, asked, (), tokenizer, 1010, 4096, lambda _: None)
    assert isinstance(refused, RequestFailed)
    assert (refused.code, refused.text.partition(":")[0]) == ("bad_token", field)
