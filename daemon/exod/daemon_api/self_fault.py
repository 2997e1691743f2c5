"""The names of the faults that a node can do to itself (`exoctl debug fault node KIND`). Decides nothing."""

from __future__ import annotations

from typing import Literal, get_args

SelfFault = Literal["kill-rank", "stop-rank", "no-descriptors", "deaf"]
SELF_FAULTS: tuple[SelfFault, ...] = get_args(SelfFault)
