"""What `exoctl engine status` says of the memory that a rank wires."""

from __future__ import annotations

import msgspec

from exod.cli.base.paint import Paint
from exod.cli.screens.engine import engine_screen
from exod.daemon_api.forecast_line import ForecastLine
from tests.fake_daemon import FakeDaemon

GIB = 1 << 30


def shown(**changes: object) -> str:
    report = FakeDaemon().engine()
    ranks = tuple(msgspec.structs.replace(rank, **changes) for rank in report.ranks)
    screen = engine_screen(msgspec.structs.replace(report, ranks=ranks), Paint(color=False, unicode=True), 140)
    return "\n".join(screen)


def test_a_rank_says_how_much_it_wires_of_what_is_recommended() -> None:
    assert "wires up to 9216 MiB of 10.7 GiB" in shown(wired_bytes=9 * GIB, recommended_bytes=11_453_251_584)


def test_where_nothing_is_wired_nothing_is_said() -> None:
    assert "wires" not in shown()
    assert "wires" not in shown(recommended_bytes=11_453_251_584)


def test_a_warning_of_the_load_stands_below_its_rank() -> None:
    assert "it may be slow" in shown(text="layers 0 to 15 need 9.00 GiB; 8.00 GiB are free now: it may be slow")


def test_all_ways_are_shown_with_what_was_predicted_and_measured() -> None:
    report = FakeDaemon().engine()
    ways = (
        ForecastLine("alone", 12.0, 900.0, runs=False, text="studio1"),
        ForecastLine("pipeline", 13.0, 500.0, runs=True, measured_token_ms=12.5, error=0.04),
        ForecastLine("tensor", 0.0, 0.0, runs=False, text="its 9 heads cannot be divided by 2"),
    )
    engine = msgspec.structs.replace(report.engine, forecasts=ways, parallel_reason="a pipeline: because")
    lines = engine_screen(msgspec.structs.replace(report, engine=engine), Paint(color=False, unicode=True), 140)
    screen = "\n".join(lines)
    assert "a pipeline: because" in screen
    assert "predicted 12.0 ms a token, 1,024 tokens of prompt in 900 ms; studio1" in screen
    assert "(measured 12.5 ms, predicted +4%)" in screen
    assert "cannot be: its 9 heads cannot be divided by 2" in screen


def test_ranks_that_run_over_tcp_where_rdma_is_wished_say_why() -> None:
    report = FakeDaemon().engine()
    assert "RDMA" not in shown()
    why = "ranks run over TCP, not RDMA: no Thunderbolt port is known"
    engine = msgspec.structs.replace(report.engine, transport_reason=why)
    lines = engine_screen(msgspec.structs.replace(report, engine=engine), Paint(color=False, unicode=True), 140)
    assert why in " ".join(line.strip() for line in lines)


def test_ranks_that_run_over_rdma_say_so() -> None:
    report = FakeDaemon().engine()
    engine = msgspec.structs.replace(report.engine, transport="rdma")
    lines = engine_screen(msgspec.structs.replace(report, engine=engine), Paint(color=False, unicode=True), 140)
    assert "ranks communicate over RDMA" in "\n".join(lines)
