"""A rank of a group over RDMA's stand-in, as a process: does what its standard input says, line by line."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from exoengine.native.self_test import load_module
from exoengine.protocol import RdmaSetup
from exoengine.ring.group import RingGroup
from exoengine.ring.ring_plan import FormError, RingPlan
from tests.engine.ring.test_group import Loaded

FORMS_WITHIN_S = 30.0


def main(module: str, rank: int) -> None:
    group = RingGroup(Loaded(load_module(Path(module))))
    for line in sys.stdin:
        do, *given = json.loads(line)
        print(json.dumps(_did(group, rank, do, given)), flush=True)
    os._exit(0)


def _did(group: RingGroup, rank: int, do: str, given: list[Any]) -> Any:
    if do == "form":
        hosts, coordinator, attempt = given
        size = len(hosts)
        devices = tuple(tuple(("rdma_en1",) if a != b else () for b in range(size)) for a in range(size))
        setup = RdmaSetup(devices, coordinator, stand_in=True)
        plan = RingPlan("plan", attempt, rank, size, tuple(hosts), key=b"k", rdma=setup)
        try:
            group.form(plan, time.monotonic() + FORMS_WITHIN_S, 10.0)
        except FormError as error:
            group.leave()
            return [error.code, str(error)]
        return "formed"
    if do == "sum":
        return mx.distributed.all_sum(mx.array([rank + 1]), group=group.handle).item()
    if do == "abort from another thread, then sum":
        threading.Timer(0.2, lambda: group.abort("told", "the link is dead")).start()
        return mx.distributed.all_sum(mx.array([rank + 1]), group=group.handle).item()
    group.leave()
    return "left"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
