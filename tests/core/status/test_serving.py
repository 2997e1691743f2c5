"""One verdict on whether a request would be answered, and a health that follows from it, in every state."""

from __future__ import annotations

from itertools import product

import pytest

from exod.alert_table import ALERTS, is_note
from exod.core.status.health import Downloading, HealthJudge
from exod.core.status.serving import NO_MODEL, EngineFacts, serving
from exod.model import EngineState, Health
from tests.core.status.test_health import CABLE, ME, given

LONG_S = 1 + max(kind.grace_s for kind in ALERTS.values())


def states() -> list[EngineFacts]:
    return [
        EngineFacts(
            state,
            "as it says",
            downloading=downloading,
            draining=draining,
            waiting=waiting,
            edge_text=edge,
            local_network_text=denied,
        )
        for state, downloading, draining, waiting, edge, denied in product(
            EngineState, (False, True), (False, True), (0, 2), ("", "large frames do not pass"), ("", "refused")
        )
        if not (downloading and state not in (EngineState.LOADING, EngineState.RECOVERING))
    ]


@pytest.mark.parametrize("engine", states(), ids=str)
def test_whoever_would_not_be_answered_finds_the_same_code_among_the_reasons(engine: EngineFacts) -> None:
    verdict, judge = serving(engine), HealthJudge()
    downloads = (Downloading(ME.id, "m", 1, 2),) if engine.downloading else ()
    what = given(CABLE, engine=engine, downloads=downloads)
    judge.observe(what, 0.0, 0.0)
    found = judge.observe(what, LONG_S, LONG_S)
    reasons = {one.code for one in found.reasons}
    if verdict.code and verdict.code != NO_MODEL:
        assert verdict.code in reasons, (verdict, reasons)
        assert not is_note(verdict.code)
    if not verdict.serves and verdict.code != NO_MODEL:
        assert found.health is not Health.HEALTHY
    if found.health is Health.HEALTHY:
        assert verdict.serves or verdict.code == NO_MODEL
    if found.health is Health.DOWN:
        assert not verdict.admits, "what is down takes no request"
    assert verdict.serves <= verdict.admits


def test_a_load_is_no_reason_at_once_and_one_after_its_deadline() -> None:
    judge, what = HealthJudge(), given(CABLE, engine=EngineFacts(EngineState.LOADING, "loads 3 of 9 GiB"))
    assert judge.observe(what, 0.0, 0.0).health is Health.HEALTHY
    assert judge.observe(what, 19.0, 19.0).health is Health.HEALTHY
    (reason,) = judge.observe(what, 20.0, 20.0).reasons
    assert (reason.code, reason.text) == ("engine_loading", "loads 3 of 9 GiB")
