"""What was predicted for each way of running the model, as reports show it, beside what was measured.

Decides nothing. Milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

from exod.core.engine.auto_parallel import next_way, present_way
from exod.core.engine.parallel_forecast import Forecast, Way, forecasts, in_words
from exod.daemon_api.forecast_line import ForecastLine
from exod.status.engine_source import EngineSource


def forecast_lines(
    core: EngineSource, named: Callable[[str], str], tokens_per_s: float
) -> tuple[ForecastLine, ...]:
    """`named` puts names in place of nodes' ids. Nothing where a rank has measured nothing yet."""
    now, found = _predicted(core)
    measured_ms = 1e3 / tokens_per_s if tokens_per_s > 0 else None
    return tuple(_line(one, one.way == now, named, measured_ms) for one in found)


def parallel_reason(core: EngineSource) -> str:
    """Why the model runs as it does, as text; empty where nothing is predicted."""
    now, found = _predicted(core)
    facts = core.rank.model.facts
    to = next_way(found, now, facts.sizes) if found and facts is not None else None
    return in_words(found, now, core.auto.wished, to)


def _predicted(core: EngineSource) -> tuple[Way, tuple[Forecast, ...]]:
    facts, ranks = core.rank.model.facts, core.ranks()
    if core.plan is None or facts is None or facts.model != core.plan.model:
        return "pipeline", ()
    return present_way(ranks), forecasts(core.plan, facts.sizes, ranks)


def _line(one: Forecast, runs: bool, named: Callable[[str], str], measured_ms: float | None) -> ForecastLine:
    measured_ms = measured_ms if runs else None
    token_ms = one.token_s * 1e3
    return ForecastLine(
        one.way,
        round(token_ms, 3),
        round(one.prefill_s * 1e3, 1),
        runs,
        named(one.obstacle or str(one.node or "")),
        round(measured_ms, 3) if measured_ms is not None else None,
        round(token_ms / measured_ms - 1, 3) if measured_ms is not None else None,
    )
