"""The daemon's own look at its throughput and its host: figures are taken, and what was learned is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from exod.core.engine.engine_messages import RankPhase
from exod.model import MeshPlan, NodeId, Reason
from exod.status import watches
from exod.status.watches import FILE, Moment, Watches
from exoengine.protocol import Heartbeat
from tests.core.engine.engine_samples import A, B, beat, status
from tests.core.engine.rank.rank_samples import PLAN

SLOW = Reason("link_slow", "b", "studio1–studio2 runs over Wi-Fi en1 at 9.1 ms", 0.0)


def decoding(rate: float, **fields: Any) -> Heartbeat:
    values = {"positions": ((1, 100),), "kv_tokens": 100, "tokens_per_s": rate, **fields}
    return msgspec.structs.replace(beat("generating"), **values)


def moment(
    heartbeat: Heartbeat | None, *reasons: Reason, plan: MeshPlan | None = PLAN, restarts: int = 0
) -> Moment:
    ranks = (status(A, RankPhase.FORMED, layers=(0, 4), restarts=restarts), status(B, layers=(4, 8)))
    return Moment(plan, ranks, heartbeat, reasons, {A: "studio1", B: "studio2"}, {}, dynamic=True)


def run(watched: Watches, heartbeat: Heartbeat | None, seconds: int, start: float, *reasons: Reason) -> list[str]:
    found: list[str] = []
    for second in range(seconds):
        facts = watched.look(moment(heartbeat, *reasons), start + second)
        found = [fact.text for fact in facts if fact.code == "throughput_low"]
    return found


def test_low_throughput_is_told_with_its_cause_also_after_a_restart(tmp_path: Path) -> None:
    before = Watches(A, tmp_path)
    assert run(before, decoding(100.0), 40, 0.0) == []
    before.save()
    after = Watches(A, tmp_path)
    (text,) = run(after, decoding(40.0), 40, 1000.0, SLOW)
    assert text.startswith("40 tokens/s, less than half of the 100 that this plan reached before")
    assert "studio1–studio2 runs over Wi-Fi en1 at 9.1 ms" in text
    assert run(after, decoding(90.0), 40, 2000.0) == []


def test_a_prefill_beside_it_and_another_number_of_sequences_say_nothing(tmp_path: Path) -> None:
    watched = Watches(A, tmp_path)
    run(watched, decoding(100.0), 40, 0.0)
    assert run(watched, decoding(20.0, prefilling=True), 60, 100.0) == []
    assert run(watched, decoding(20.0, positions=((1, 50), (2, 50))), 60, 200.0) == []
    assert run(watched, None, 5, 300.0) == []


def test_a_damaged_file_is_set_aside_and_nothing_is_learned_yet(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('[{"setting": 7}]')
    watched = Watches(A, tmp_path)
    assert run(watched, decoding(40.0), 40, 0.0) == []
    assert (tmp_path / f"{FILE}.damaged").exists()


def test_a_folder_that_cannot_be_written_costs_the_baselines_alone(tmp_path: Path) -> None:
    watched = Watches(A, tmp_path)
    run(watched, decoding(100.0), 40, 0.0)
    (tmp_path / FILE).with_suffix(".tmp").mkdir()
    run(watched, decoding(120.0), 40, 100.0)
    watched.save()


def test_the_hosts_figures_become_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(watches.shutil, "disk_usage", lambda _: usage)
    watched = Watches(A, tmp_path)
    codes = [fact.code for fact in watched.look(moment(beat()), 0.0)]
    assert "disk_low" in codes
    for count, now in ((1, 6.0), (2, 12.0), (3, 18.0)):
        codes = [fact.code for fact in watched.look(moment(beat(), restarts=count), now)]
    assert "restart_loop" in codes


def test_steps_that_are_safe_under_dynamic_sync_are_a_fact_with_the_reason(tmp_path: Path) -> None:
    safe = msgspec.structs.replace(beat(), sync_mode="safe", sync_reason="no native group: no compiler")
    watched = Watches(A, tmp_path)
    (fact,) = [one for one in watched.look(moment(safe), 0.0) if one.code == "safe_steps"]
    assert fact.subject == A
    assert "no native group: no compiler" in fact.text
    fixed = msgspec.structs.replace(moment(safe), dynamic=False)
    assert "safe_steps" not in [one.code for one in watched.look(fixed, 1.0)]
    alone = msgspec.structs.replace(moment(safe), plan=msgspec.structs.replace(PLAN, ring=(NodeId(A),)))
    assert "safe_steps" not in [one.code for one in watched.look(alone, 2.0)]


def test_a_data_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    watched = Watches(A, folder)
    folder.rmdir()
    assert [fact.code for fact in watched.look(moment(beat()), 0.0)] == []
