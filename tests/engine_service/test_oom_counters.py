"""The kernel's counters of processes that it killed for memory, in both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from exod.engine_service.oom_counters import OomCounters, read_counters


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = {
    "proc/self/cgroup": "4:memory:/exod\n1:cpu:/\n0::/\n",
    "sys/fs/cgroup/memory/exod/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "sys/fs/cgroup/memory/exod/memory.limit_in_bytes": f"{512 << 20}\n",
}
V2 = {
    "proc/self/cgroup": "0::/exod\n",
    "sys/fs/cgroup/exod/memory.events": "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n",
    "sys/fs/cgroup/exod/memory.max": f"{512 << 20}\n",
}


@pytest.mark.parametrize("files", [V1, V2])
def test_both_versions_of_control_groups_are_read(tmp_path: Path, files: dict[str, str]) -> None:
    root = tree(tmp_path, files | {"proc/vmstat": "nr_free_pages 7\noom_kill 12\n"})
    assert read_counters(root) == OomCounters(3, 12, 512 << 20)


def test_where_nothing_is_counted_nothing_is_said(tmp_path: Path) -> None:
    counters = read_counters(tmp_path)
    assert counters == OomCounters(0, 0, None)
    assert counters.kill_since(counters) == ""


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert read_counters(tree(tmp_path, V2 | {"sys/fs/cgroup/exod/memory.max": "max\n"})).limit is None
    other = tmp_path / "v1"
    endless = {"sys/fs/cgroup/memory/exod/memory.limit_in_bytes": "9223372036854771712\n"}
    assert read_counters(tree(other, V1 | endless)).limit is None


def test_a_kill_is_told_with_figures() -> None:
    before = OomCounters(3, 12, 512 << 20)
    assert OomCounters(4, 13, 512 << 20).kill_since(before).endswith("a limit of 0.50 GiB")
    assert "are free now" in OomCounters(3, 13, 512 << 20).kill_since(before)
    assert before.kill_since(before) == ""
