"""What the daemon looks at beside links and ranks, once a second: the throughput, and the host itself.

Takes the figures, lets `core/status/throughput.py` and `core/status/host_watch.py` judge them, and keeps the
learned baselines in the data folder. Decides nothing. Times are monotonic seconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import structlog

from exod import data_files
from exod.core.base.facts import Fact
from exod.core.engine.engine_messages import RankStatus
from exod.core.status.host_watch import HostFigures, HostWatch
from exod.core.status.throughput import Baseline, ThroughputWatch, Workload, band_of, low_text
from exod.model import MeshPlan, NodeId, Reason
from exod.platform.host_memory import MemoryReader
from exoengine.protocol import Heartbeat

log = structlog.get_logger()

FILE: Final = "throughput.json"

SAVE_EVERY_S: Final = 300.0
"""A learned baseline that a crash costs is learned again in ten seconds of decoding."""

HOST_EVERY_S: Final = 5.0
"""Disk, memory and clocks do not change faster, and each costs a system call."""

SLOWS_DOWN: Final = frozenset(
    {"link_slow", "link_lossy", "link_degraded", "memory_low", "gpu_wait", "node_suspect", "ends_disagree"}
)
"""Reasons that make tokens come slower: said as the likely cause."""

BUSY: Final = 1.5
"""Runnable processes a core over the last minute: the worker itself is one of them."""


class Moment(msgspec.Struct, frozen=True):
    """What the parts of the daemon say at one moment. `names` of nodes by id, `clocks` as HostFigures has them."""

    plan: MeshPlan | None
    ranks: tuple[RankStatus | None, ...]
    heartbeat: Heartbeat | None
    reasons: tuple[Reason, ...]
    names: Mapping[NodeId, str]
    clocks: Mapping[NodeId, float]
    dynamic: bool
    """Does `engine.sync` leave the choice to exod?"""


class Watches:
    """Keeps what it learned; reads the file once, when it is made."""

    def __init__(self, me: NodeId, data_dir: Path) -> None:
        self._me, self._data_dir, self._memory = me, data_dir, MemoryReader()
        self._throughput = ThroughputWatch(_read(data_dir / FILE))
        self._saved = self._throughput.baselines
        self._saved_at = self._host_at = float("-inf")
        self._host = HostWatch(me)
        self._host_facts: list[Fact] = []

    def look(self, moment: Moment, now: float) -> tuple[Fact, ...]:
        """Once a second: all that holds now."""
        setting = _setting(moment, self._me)
        rate = moment.heartbeat.tokens_per_s if moment.heartbeat is not None else 0.0
        self._throughput.observe(setting, rate, now)
        if now >= self._host_at + HOST_EVERY_S:
            self._host_at = now
            with contextlib.suppress(OSError):  # the data folder is gone: what was found stays
                self._host_facts = self._host.facts(self._figures(moment), dict(moment.names), now)
        if now >= self._saved_at + SAVE_EVERY_S:
            self._saved_at = now
            self.save()
        return (*self._host_facts, *self._low(moment.reasons), *_safe_steps(moment, self._me))

    def save(self) -> None:
        """Writes the baselines where there are new ones, or the file was removed. A full disk costs those, not the
        daemon.
        """
        baselines, file = self._throughput.baselines, self._data_dir / FILE
        if baselines == self._saved and (file.exists() or not baselines):
            return
        self._saved = baselines
        temporary = file.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(baselines))
            temporary.replace(file)
        except OSError as error:
            log.warning("throughput_not_kept", file=str(file), error=error.strerror)

    def _low(self, reasons: Iterable[Reason]) -> list[Fact]:
        low = self._throughput.low
        if low is None:
            return []
        causes = [reason.text for reason in reasons if reason.code in SLOWS_DOWN]
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        if load > BUSY:
            causes.append(f"{load:.1f} programs want each processor of this node")
        return [Fact("throughput_low", self._me, low_text(low, tuple(causes)))]

    def _figures(self, moment: Moment) -> HostFigures:
        memory = self._memory.read()
        return HostFigures(
            folder=str(self._data_dir),
            disk_free_bytes=shutil.disk_usage(self._data_dir).free,
            memory_available=memory.available_bytes / memory.total_bytes,
            clocks=dict(moment.clocks),
            restarts={rank.sender: rank.restarts for rank in moment.ranks if rank is not None},
        )


def _setting(moment: Moment, me: NodeId) -> Workload | None:
    """None unless this node's rank decodes and does nothing else."""
    plan, beat = moment.plan, moment.heartbeat
    own = next((rank for rank in moment.ranks if rank is not None and rank.sender == me), None)
    if plan is None or beat is None or own is None or beat.state != "generating" or beat.prefilling:
        return None
    layers = ", ".join(f"{rank.sender} {rank.layers} of {rank.parts}" for rank in moment.ranks if rank is not None)
    sequences = len(beat.positions)
    if not sequences:
        return None
    return Workload(plan.model, layers, beat.sync_mode, band_of(beat.kv_tokens // sequences), sequences)


def _safe_steps(moment: Moment, me: NodeId) -> list[Fact]:
    """A note once it has lasted for ten minutes (the table's grace)."""
    plan, beat = moment.plan, moment.heartbeat
    if not moment.dynamic or plan is None or len(plan.ring) < 2 or beat is None or beat.sync_mode != "safe":
        return []
    if beat.state not in ("ready", "generating"):
        return []
    return [Fact("safe_steps", me, f"every step has been safe for ten minutes or more: {beat.sync_reason}")]


def _read(file: Path) -> tuple[Baseline, ...]:
    """None of them where there is no file yet, or a damaged one, which is set aside."""
    try:
        found = data_files.read(file, tuple[Baseline, ...])
    except OSError:
        return ()
    return () if isinstance(found, data_files.Damaged) else found
