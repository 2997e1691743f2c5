"""A rank whose model is downloaded: what it tells meanwhile, and when the download is called off."""

from __future__ import annotations

from exod.core.engine.engine_events import EmitEvent, ResolveModel, StopSearch
from exod.core.engine.engine_messages import RankPhase
from exod.core.engine.rank.rank_status import ReportStatus
from tests.core.engine.engine_samples import B, C, a_plan, only
from tests.core.engine.rank.rank_samples import FACTS, PLAN, a_rank, a_resolved_rank

GIB = 1 << 30


def events(commands: object) -> list[tuple[str, object]]:
    assert isinstance(commands, list)
    return [(story.type, story.data["done_bytes"]) for story in only(commands, EmitEvent)]


def test_a_download_is_told_at_its_start_at_each_tenth_and_at_its_end() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    told = [events(rank.model.progress("m", done, 10 * GIB)) for done in (0, GIB // 2, GIB, 3 * GIB, 3 * GIB)]
    assert told == [[("engine.downloading", 0)], [], [("engine.downloading", GIB)],
                    [("engine.downloading", 3 * GIB)], []]  # fmt: skip
    found = only(rank.model_found(FACTS, 9.0), EmitEvent)
    assert [story.type for story in found] == ["engine.downloaded"]


def test_a_model_that_is_here_is_found_without_a_word() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    assert only(rank.model_found(FACTS, 1.0), EmitEvent) == []


def test_the_other_nodes_hear_how_far_it_is_within_a_second() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    rank.model.progress("m", GIB, 4 * GIB)
    (report,) = only(rank.handle_timer(1.0), ReportStatus)
    assert report.status.phase is RankPhase.RESOLVING
    assert (report.status.download_done, report.status.download_total) == (GIB, 4 * GIB)
    (found,) = only(rank.model_found(FACTS, 2.0), ReportStatus)
    assert found.status.download_total == 0


def test_another_model_calls_the_download_off() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    commands = rank.commit(a_plan(C, B, number=2, model="other"), "another model", 1.0)
    assert [command for command in commands if isinstance(command, StopSearch | ResolveModel)] == [
        StopSearch(),
        ResolveModel("other"),
    ]
    assert rank.model.progress("m", GIB, 4 * GIB) == []


def test_no_model_any_more_calls_the_download_off_once() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    assert only(rank.commit(a_plan(C, B, number=2, model=""), "unloaded", 1.0), StopSearch) == [StopSearch()]
    assert only(rank.handle_timer(2.0), StopSearch) == []


def test_what_was_found_already_is_not_called_off() -> None:
    rank = a_resolved_rank()
    assert only(rank.commit(a_plan(C, B, number=2, model=""), "unloaded", 5.0), StopSearch) == []
