"""Timers of whole seconds go off together, so that they wake an idle daemon once and not each for itself.

Decides only when the next moment is. Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from typing import Final

SHORTEST: Final = 0.25
"""Of the interval: a timer that went off a moment early is not set to the same moment again."""


def until_next(every_s: float) -> float:
    """Seconds from now to the next multiple of `every_s` on the loop's clock: from a quarter of it to five."""
    left = every_s - asyncio.get_running_loop().time() % every_s
    return left if left > SHORTEST * every_s else left + every_s
