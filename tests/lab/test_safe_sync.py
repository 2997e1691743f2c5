"""What people see of dynamic safe sync on two real nodes whose first stage takes 3 s a step, and of the context.

The stage is made slow from outside: Python imports a `sitecustomize` of the test's into the workers alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.chat import count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.node import Node, wait_for
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

SERVES_WITHIN_S = 90.0
SEEN_WITHIN_S = 10.0
STAGE_TAKES_S = 3.0
WATCHDOG_S = 2.0
TOKENS = 4
SAFE_CONTEXT = 60
PATIENT_WATCHDOG_S = 60.0  # a busy machine's pauses make no step safe
ANSWERS = 3  # a link that is late for a moment makes steps safe, too, and hides the change that is looked for

SLOW = f"""
import sys
if "exoengine.worker" in sys.orig_argv:
    import time
    from exoengine.generate.pipeline import Pipeline
    send = Pipeline._send
    def slow(self, *args):
        if self._stage.is_first:
            time.sleep({STAGE_TAKES_S})
        return send(self, *args)
    Pipeline._send = slow
"""


@pytest.fixture
def slowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *([known] if known else [])]))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(2) as made:
        yield made


def started(lab: Lab, **engine: Any) -> Cluster:
    made = Cluster(lab, (1, 2), config={"engine": engine, "mqtt": {"broker": "off"}})
    made.start()
    made.wait_ready("thunderbolt", SERVES_WITHIN_S)
    return made


def told(cluster: Cluster, kind: str) -> list[dict[str, Any]]:
    return [event for node in cluster.nodes for event in node.events() if event["type"] == kind]


@pytest.mark.usefixtures("slowed")
def test_forced_fast_steps_behind_a_slow_stage_are_told(lab: Lab) -> None:
    pair = started(lab, sync="fast", watchdog_s=WATCHDOG_S)
    pair.node(1).chat(count_prompt(1, 9), max_tokens=TOKENS)
    event, *_ = wait_for(lambda: told(pair, "engine.watchdog"), SEEN_WITHIN_S, "a wait is told")
    assert event["limit_s"] == WATCHDOG_S
    assert event["waited_s"] > WATCHDOG_S
    behind = next(node for node in pair.nodes if node.status()["node"]["id"] == event["subject"])
    status = behind.status()
    assert status["engine"]["sync"] == {"mode": "fast", "reason": "configured"}
    reasons = {reason["code"]: reason["text"] for reason in status["reasons"]}
    assert 'engine.sync = "dynamic"' in reasons["gpu_wait"]
    findings = json.loads(behind.exoctl("doctor", "--json").stdout)["findings"]
    assert "gpu_wait" in {finding["code"] for finding in findings}
    metrics = behind.request("GET", "/metrics").body.decode()
    assert metric(metrics, "exod_engine_gpu_wait_violations") >= 1


@pytest.mark.usefixtures("slowed")
def test_dynamic_steps_are_safe_before_any_graph_waits_so_long(lab: Lab) -> None:
    pair = started(lab, sync="dynamic", watchdog_s=WATCHDOG_S)
    pair.node(1).chat(count_prompt(1, 9), max_tokens=TOKENS)
    for node in pair.nodes:
        wait_for(lambda node=node: node.status()["engine"]["sync"]["mode"] == "safe", SEEN_WITHIN_S, "safe steps")
        assert metric(node.request("GET", "/metrics").body.decode(), "exod_engine_gpu_wait_violations") == 0
    assert told(pair, "engine.watchdog") == []


def outgrown(node: Node) -> list[dict[str, Any]]:
    """Where this node told that steps became safe beyond the safe context."""
    changes = [event for event in node.events() if event["type"] == "engine.sync"]
    return [event for event in changes if event["mode"] == "safe" and event["kv_tokens"] > SAFE_CONTEXT]


def test_a_context_that_outgrows_the_safe_one_is_told_on_both_nodes(lab: Lab) -> None:
    context = {"max_context": 900, "kv_bits": 8, "kv_group_size": 32}
    pair = started(lab, safe_context=SAFE_CONTEXT, watchdog_s=PATIENT_WATCHDOG_S, **context)
    for _ in range(ANSWERS):
        assert numbers(pair.node(1).chat(count_prompt(1, 150))) == list(range(1, 151))
        if all(outgrown(node) for node in pair.nodes):
            break
    for node in pair.nodes:
        assert outgrown(node)[-1]["reason"] in (
            f"the context is longer than {SAFE_CONTEXT} tokens",
            "another rank asked for it",
        )
        assert metric(node.request("GET", "/metrics").body.decode(), "exod_engine_sync_changes") >= 1
        checks = json.loads(node.exoctl("preflight", "--json").stdout)["checks"]
        figure = next(check["figure"] for check in checks if check["name"] == "context")
        assert figure == "at most 900 tokens, KV cache 8 bits in groups of 32"
    body = {"messages": [{"role": "user", "content": "count " * 900}], "max_tokens": 5}
    reply = pair.node(2).request("POST", "/v1/chat/completions", body, timeout_s=30.0)
    assert (reply.status, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "context of 900" in reply.json()["error"]["message"]


def metric(text: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))
