"""The few numbers of the core that a person or a test may set. Everything else is a constant beside its reason.

Decides nothing. The shell builds one CoreConfig from the `[mesh]` section and hands it to NodeCore.
"""

from __future__ import annotations

import msgspec


class CoreConfig(msgspec.Struct, frozen=True):
    degraded_ms: float = 5.0
    """A path whose floor stays above this is DEGRADED (contract, `mesh.degraded_ms`)."""
    recover_ms: float = 3.5
    """A DEGRADED path is UP again below this (contract, `mesh.recover_ms`)."""
    hold_up_s: float = 3.0
    """A better path must stay better this long before it is taken (contract, `mesh.hold_up_s`)."""
    min_mb_per_s: float = 0.0
    """What the ring must move over a path that it uses (`mesh.min_mb_per_s`); 0: by the path's kind."""
    solo_settle_s: float = 1.0
    """A node that knows no peer waits this long before it plans alone: peers that start together meet first."""
    relapse_within_s: float = 30.0
    """A path that falls again within this time of its return has relapsed: its hold-up doubles."""
