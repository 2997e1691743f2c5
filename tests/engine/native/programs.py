"""What the ranks of test_operations.py and test_faults.py do, each in a process of its own. Prints JSON."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from exoengine.native.self_test import load_module

BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


class Rank:
    def __init__(self, module: Any, rank: int, size: int, sockets: dict[int, list[int]]) -> None:
        self.module, self.rank, self.size, self.sockets = module, rank, size, sockets
        mx.set_default_device(mx.cpu)

    def group(self, spin_us: int = 0, deadline_s: float = 30.0) -> tuple[Any, Any]:
        made: tuple[Any, Any] = self.module.make(self.rank, self.size, self.sockets, spin_us, deadline_s)
        return made


def bits(array: Any) -> bytes:
    if array.dtype == mx.complex64:
        array = mx.stack([mx.real(array), mx.imag(array)])
    return bytes(memoryview(mx.contiguous(array.reshape(-1).view(BITS[array.dtype.size]))))


def contribution(rank: int, count: int, dtype: Any) -> Any:
    """The same on every rank that asks for it, and never the same twice."""
    key = mx.random.key(1000 * count + rank)
    if dtype == mx.bool_:
        return mx.random.uniform(shape=(count,), key=key) > 0.7
    if dtype == mx.complex64:
        real, imag = (mx.random.normal((count,), key=mx.random.key(7 * rank + part)) for part in (1, 2))
        return real + 1j * imag
    if mx.issubdtype(dtype, mx.floating):
        return (mx.random.normal((count,), key=key) * 100).astype(dtype)
    return mx.random.randint(-(2**31), 2**31 - 1, (count,), key=key).astype(dtype)  # sums wrap around


def expected(kind: str, parts: list[Any]) -> Any:
    """In rank order, as the native group promises."""
    dtype = parts[0].dtype
    if kind == "all_gather":
        return mx.concatenate(parts)
    if kind in ("all_max", "all_min"):
        total = parts[0]
        for part in parts[1:]:
            total = (mx.maximum if kind == "all_max" else mx.minimum)(total, part)
        return total
    wide = mx.float32 if dtype in (mx.float16, mx.bfloat16) else dtype
    total = parts[0].astype(wide)
    for part in parts[1:]:
        total = mx.logical_or(total, part) if dtype == mx.bool_ else total + part.astype(wide)
    return total.astype(dtype)


def operations(me: Rank, dtype: str, counts: list[int], kinds: list[str]) -> Any:
    """Every operation, every size: compared bit by bit with what it should be; all ranks' digests must be equal."""
    group, control = me.group()
    kind_of, digest, wrong = getattr(mx, dtype), hashlib.sha256(), []
    for count in counts:
        parts = [contribution(rank, count, kind_of) for rank in range(me.size)]
        for kind in kinds:
            out = getattr(mx.distributed, kind)(parts[me.rank], group=group)
            wanted = expected(kind, parts)
            if kind == "sum_scatter":
                share = count // me.size
                wanted = wanted[me.rank * share : (me.rank + 1) * share]
            else:
                digest.update(bits(out))
            if bits(out) != bits(wanted):
                wrong.append([kind, count])
    return {"wrong": wrong, "digest": digest.hexdigest(), "failed": control.failed}


def passing(me: Rank, dtype: str, counts: list[int]) -> Any:
    """Each rank sends to the next: a ring, in one graph, and then back."""
    group, control = me.group()
    kind_of, wrong = getattr(mx, dtype), []
    after, before = (me.rank + 1) % me.size, (me.rank - 1) % me.size
    for count in counts:
        mine, theirs = contribution(me.rank, count, kind_of), contribution(before, count, kind_of)
        if me.rank == 0:
            mx.eval(mx.distributed.send(mine, after, group=group))
            got = mx.distributed.recv_like(mine, before, group=group)
        else:
            got = mx.distributed.recv_like(mine, before, group=group)
            mx.eval(got)
            mx.eval(mx.distributed.send(mine, after, group=group))
        if bits(got) != bits(theirs):
            wrong.append(count)
    return {"wrong": wrong, "failed": control.failed}


def not_contiguous(me: Rank) -> Any:
    group, control = me.group()
    mine = mx.arange(12, dtype=mx.float32).reshape(3, 4).T
    total = mx.distributed.all_sum(mine, group=group)
    return {"right": mx.array_equal(total, mine * me.size).item(), "failed": control.failed}


def splitting(me: Rank) -> Any:
    """Even and odd ranks apart, in turned order; then the whole group again."""
    group, control = me.group()
    half = group.split(me.rank % 2, me.size - me.rank)
    apart = mx.distributed.all_gather(mx.array([me.rank]), group=half).tolist()
    whole = mx.distributed.all_sum(mx.array([1]), group=group).tolist()
    return {"rank": half.rank(), "apart": apart, "whole": whole, "failed": control.failed}


def lanes(me: Rank, mebibytes: int) -> Any:
    group, control = me.group()
    mine = mx.full((mebibytes * 1024 * 256,), me.rank + 1.0)
    total = mx.distributed.all_sum(mine, group=group)
    small = mx.distributed.all_sum(mx.array([1]), group=group)
    mx.eval(total, small)
    wanted = sum(rank + 1.0 for rank in range(me.size))
    right = bool(mx.all(total == wanted).item()) and small.item() == me.size
    return {"right": right, "carried": list(control.carried().values()), "failed": control.failed}


OPERATIONS = 6


def _step(group: Any, me: Rank, operations: int) -> Any:
    """The first of six operations that depend on one another, built as one graph: it begins with a receive on rank
    0 and ends with its send, as a stage's does.
    """
    other = 1 - me.rank
    x = mx.array([1.0, 2.0, 3.0, 4.0])
    if operations > 0:
        receives = me.rank == 0
        x = (
            mx.distributed.recv_like(x, other, group=group)
            if receives
            else mx.distributed.send(x, other, group=group)
        )
    if operations > 1:
        x = mx.distributed.all_sum(x, group=group) * 2
    if operations > 2:
        x = mx.distributed.all_gather(x, group=group)[:4] + 1
    if operations > 3:
        x = mx.distributed.all_max(x, group=group)
    if operations > 4:
        x = mx.distributed.all_min(x, group=group)
    if operations > 5 and me.rank == 0:
        x = mx.distributed.send(x, other, group=group)
    return x


def failing(me: Rank, at: int) -> Any:
    """Rank 1 does the graph's first `at` operations and is gone; rank 0 evaluates all of it."""
    group, control = me.group()
    if me.rank == 1:
        mx.eval(_step(group, me, at))
        control.abort()
        return {"failed": control.failed}
    raised = ""
    try:
        mx.eval(_step(group, me, OPERATIONS))
        mx.synchronize(mx.cpu)
    except RuntimeError as error:
        raised = str(error)
    failed = control.failed
    mx.eval(mx.distributed.recv((1,), mx.float32, 1, group=group))  # what the next step begins with
    return {"failed": failed, "raised": raised, "next_failed": control.failed - failed, "reason": control.reason}


def silent(me: Rank, deadline_s: float) -> Any:
    """Rank 1 is there and says nothing."""
    group, control = me.group(deadline_s=deadline_s if me.rank == 0 else 30.0)
    if me.rank == 1:
        mx.eval(mx.distributed.recv((1,), mx.float32, 0, group=group))
        return {"failed": control.failed}
    begun = time.monotonic()
    got = mx.distributed.recv((3,), mx.float32, 1, group=group)
    values = got.tolist()
    return {
        "values": values, "failed": control.failed, "reason": control.reason, "took_s": time.monotonic() - begun,
    }  # fmt: skip


def out_of_step(me: Rank) -> Any:
    """The ranks disagree on a shape."""
    group, control = me.group()
    total = mx.distributed.all_sum(mx.ones((4 + me.rank,)), group=group)
    return {"values": total.tolist(), "failed": control.failed, "reason": control.reason}


def stopping(me: Rank, aborters: int, between: bool) -> Any:
    """`aborters` threads abort at once, while an operation runs or between two steps."""
    group, control = me.group()
    mx.eval(mx.distributed.all_sum(mx.ones((4,)), group=group))
    barrier = threading.Barrier(aborters)

    def abort() -> None:
        if not between:
            time.sleep(0.05)
        barrier.wait()
        control.abort()

    threads = [threading.Thread(target=abort) for _ in range(aborters)]
    for thread in threads:
        thread.start()
    if between:
        for thread in threads:
            thread.join()
    waits = mx.distributed.recv((3,), mx.float32, 1 - me.rank, group=group)
    values = waits.tolist()
    for thread in threads:
        thread.join()
    return {"values": values, "failed": control.failed, "over": control.is_over}


def tallies(me: Rank) -> Any:
    """Rank 1 comes late: rank 0's wait is its own, and counted where it was."""
    group, control = me.group()
    mx.eval(mx.distributed.all_sum(mx.ones((4,)), group=group))
    before = control.tally()
    if me.rank == 1:
        time.sleep(1.0)
        mx.eval(mx.distributed.send(mx.ones((4,)), 0, group=group))
    else:
        mx.eval(mx.distributed.recv((4,), mx.float32, 1, group=group))
    return {"before": before, "after": control.tally()}


def patience(me: Rank, spin_us: int, late_s: float, rounds: int) -> Any:
    """Waits for a peer that is late each time, then for one that is not: does it still ask for so long?"""
    group, control = me.group(spin_us=spin_us)
    found = [control.waits_awake]
    for pause_s in (late_s, 0.0):
        for _ in range(rounds):
            if me.rank == 1:
                time.sleep(pause_s)
                mx.eval(mx.distributed.send(mx.ones((4,)), 0, group=group))
            else:
                mx.eval(mx.distributed.recv((4,), mx.float32, 1, group=group))
        found.append(control.waits_awake)
    return found


def cost(me: Rank, counts: list[int], spin_us: int, rounds: int, pause_s: float = 0.0) -> Any:
    """Median seconds of an all_sum of float32, by count; `pause_s` is what each rank does before it."""
    group, _ = me.group(spin_us=spin_us)
    took = []
    for count in counts:
        x = mx.ones((count,))
        each = []
        for _ in range(rounds):
            until = time.perf_counter() + pause_s
            while time.perf_counter() < until:
                pass
            begun = time.perf_counter()
            mx.eval(mx.distributed.all_sum(x, group=group))
            each.append(time.perf_counter() - begun)
        took.append(sorted(each)[len(each) // 2])
    return took


def main() -> None:
    file, size, rank, program, options, sockets = json.loads(sys.argv[1])
    me = Rank(load_module(Path(file)), rank, size, dict(sockets))
    print(json.dumps(globals()[program](me, **options)))


if __name__ == "__main__":
    main()
