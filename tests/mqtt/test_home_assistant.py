"""Home Assistant's own code takes what is published for it. `make home-assistant` installs it beside."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from exod.mqtt.home_assistant import device_config
from exod.mqtt.topic_tree import TopicTree
from tests.conftest import missing
from tests.mqtt.mqtt_parts import A, cluster_view

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "build" / "home-assistant" / "bin" / "python"


def payload(*, commands: bool = False) -> dict[str, Any]:
    view = cluster_view()
    node = next(node for node in view.nodes if node.id == A)
    return json.loads(json.dumps(device_config(node, view, TopicTree("exo/1", "home"), commands=commands)))  # type: ignore[no-any-return]


def judged(config: dict[str, Any]) -> dict[str, Any]:
    if not PYTHON.exists():
        missing("Home Assistant is not installed: make home-assistant")
    script = Path(__file__).with_name("check_with_home_assistant.py")
    done = subprocess.run(
        [PYTHON, "-P", script], input=json.dumps(config), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("commands", [False, True])
def test_home_assistants_schemas_take_every_entity(commands: bool) -> None:
    config = payload(commands=commands)
    assert judged(config) == {"problems": [], "judged": len(config["cmps"])}


def test_home_assistant_would_say_what_is_wrong() -> None:
    """The check can fail: another class, a field nobody knows, no topic."""
    config = payload()
    config["cmps"]["health"]["dev_cla"] = "wellness"
    config["cmps"]["engine"]["colour"] = "blue"
    del config["cmps"]["sync"]["stat_t"]
    problems = judged(config)["problems"]
    assert sorted(problem.partition(":")[0] for problem in problems) == ["engine", "health", "sync"]
