"""The samples of docs/monitoring ask for what /metrics has, and Prometheus's own tool takes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from exod.alert_table import ALERTS
from tests.conftest import missing
from tests.http.served import served

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
RULES = FOLDER / "exod.rules.yml"


def dashboard_expressions() -> Iterator[str]:
    dashboard = json.loads((FOLDER / "grafana.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def promtool(*arguments: str, stdin: str = "") -> str:
    if shutil.which("promtool") is None:
        missing("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(
        ["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


async def metrics() -> str:
    async with served() as place:
        return (await place.http.ask("GET", "/metrics")).body.decode()


@pytest.mark.anyio
async def test_every_metric_that_is_asked_for_is_there() -> None:
    text = await metrics()
    asked = RULES.read_text() + "\n".join(dashboard_expressions())
    names = set(re.findall(r"\bexod_[a-z_]+", asked)) - {"exod_reason"}
    assert len(names) > 8
    there = set(re.findall(r"^(exod_[a-z_]+)", text, re.MULTILINE))
    there |= set(re.findall(r"^# TYPE (exod_[a-z_]+)", text, re.MULTILINE))
    assert names <= there, "a sample or at least its TYPE line"
    assert "# TYPE exod_reason gauge" in text


@pytest.mark.anyio
async def test_promtool_takes_what_metrics_says() -> None:
    promtool("check", "metrics", stdin=await metrics())


def test_promtool_takes_the_rules_and_the_configuration() -> None:
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(FOLDER / "prometheus.yml"))


def test_promtool_takes_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{place}", "expr": text} for place, text in enumerate(dashboard_expressions())]
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_the_codes_that_the_rules_leave_out_are_codes() -> None:
    left_out = re.findall(r'code!="([a-z_]+)"', RULES.read_text())
    assert left_out
    assert set(left_out) <= set(ALERTS)


def series(name: str, values: str) -> dict[str, str]:
    return {"series": name, "values": values}


HEALTH = 'exod_health{instance="a", state="down"}'
REASON = 'exod_reason{instance="a", code="link_slow", severity="warning", subject="b"}'
CABLE = '{instance="a", peer="b", name="b", interface="bridge0", kind="thunderbolt"}'


@pytest.mark.parametrize(
    ("given", "checks"),
    [
        pytest.param(
            [series(HEALTH, "0x5 1x40 0x20")],
            [("4m", "ExodDown", True), ("16m", "ExodDown", False)],
            id="down",
        ),
        pytest.param(
            [series(REASON, "0x5 1x40 stale")],
            [("50s", "ExodDegraded", False), ("6m", "ExodDegraded", True), ("16m", "ExodDegraded", False)],
            id="degraded",
        ),
        pytest.param(
            [series(f"exod_path_usable{CABLE}", "1x80"), series(f"exod_path_selected{CABLE}", "1x20 0x60")],
            [("4m", "ExodCableUnused", False), ("14m", "ExodCableUnused", True)],
            id="cable unused",
        ),
        pytest.param(
            [series('exod_engine_recoveries_total{instance="a"}', "0x10 0+1x20 20x120")],
            [
                ("2m", "ExodRecoversOften", False),
                ("8m", "ExodRecoversOften", True),
                ("30m", "ExodRecoversOften", False),
            ],
            id="recoveries",
        ),
    ],
)
def test_the_rules_raise_and_clear(
    tmp_path: Path, given: list[dict[str, str]], checks: list[tuple[str, str, bool]]
) -> None:
    """Samples come every 15 s. promtool compares whole alerts, so each is first asked what it would be."""
    queries = [
        {
            "eval_time": at,
            "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)',
            "exp_samples": [{"labels": "{}", "value": int(raised)}],
        }
        for at, name, raised in checks
    ]
    test = {"interval": "15s", "input_series": given, "promql_expr_test": queries}
    file = tmp_path / "rules_test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": [test]}))
    promtool("test", "rules", str(file))
