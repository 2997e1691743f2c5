"""The proof that RDMA works between all ranks, in a process of its own: `… --rank R --native CACHE`.

The setup comes as JSON on standard input. The process joins a group over RDMA, as a worker would, and moves what a
worker moves: sums small and large, and a hidden state each way round the ranks. All of it must be right. What
hangs is killed by the daemon that started it, so that nothing but this process is lost. Says nothing where all is
well; else one line on standard error, and exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Final

import mlx.core as mx

from exoengine.decoding import DecodingError, from_json
from exoengine.native.build import status
from exoengine.native.self_test import load_module
from exoengine.protocol import RdmaSetup
from exoengine.ring.rdma import inactive_ports, join, why_not
from exoengine.ring.ring_plan import RdmaError

SUM_VALUES: Final = (1024, 65536, 2 * 1024 * 1024)
"""In float32: 4 KiB, 256 KiB and 8 MiB, from what a token needs to what a chunk of a prompt does."""
ROUNDS: Final = 3


def prove(group: Any) -> None:
    """Raises RdmaError where something comes out wrong."""
    rank, size = group.rank(), group.size()
    for count in SUM_VALUES:
        for turn in range(ROUNDS):
            found = mx.distributed.all_sum(mx.full((count,), float(rank + turn)), group=group)
            if not mx.all(found == sum(range(size)) + size * turn).item():
                raise RdmaError(f"a sum of {count * 4} bytes over RDMA came out wrong")
    here = mx.arange(SUM_VALUES[1]).astype(mx.float32) * (rank + 1)
    for source in range(size):
        target = (source + 1) % size
        if rank == source:
            mx.eval(mx.distributed.send(here, target, group=group))
        elif rank == target:
            there = mx.distributed.recv_like(here, source, group=group)
            if not mx.all(there == here / (rank + 1) * (source + 1)).item():
                raise RdmaError(f"what rank {source} sent over RDMA came out wrong")


def main() -> int:
    parser = argparse.ArgumentParser(prog="exoengine.ring.rdma_proof")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--native", type=Path, required=True, help="where native groups are found")
    arguments = parser.parse_args()
    try:
        setup = from_json(sys.stdin.buffer.read(), RdmaSetup)
        if missing := why_not() or inactive_ports(setup, arguments.rank):
            raise RdmaError(missing)
        found = status(arguments.native)
        prove(join(setup, arguments.rank, load_module(Path(found.file)) if found.is_ready else None))
    except (DecodingError, RdmaError, RuntimeError, ImportError) as error:
        print(str(error).partition("\n")[0], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # MLX's threads may still wait for a rank
