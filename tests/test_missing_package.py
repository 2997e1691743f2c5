"""A node whose environment lost a package that only its worker imports: it says so, with a cure that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_single_node import READY_WITHIN_S, exoctl, write_config

PATIENCE_S = 120.0
LOST = "llguidance"
WORDS = f"ModuleNotFoundError: No module named '{LOST}'"

Node = tuple[Path, Path]
"""The configuration, and the folder of packages of the environment that the node runs in."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """An environment of its own, with all packages of this one but one, and without pip, as uv makes them."""
    folder = tmp_path_factory.mktemp("stripped")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=120)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith((LOST, "pip")):
            (site / entry.name).symlink_to(entry)
    config = write_config(folder, engine={"model": "embedded:count"})
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [folder / "venv/bin/python", "-P", "-m", "exod", "run", "--config", config],
            env={name: value for name, value in os.environ.items() if not name.startswith(("EXOD_", "PYTHON"))},
            stdout=log, stderr=log,
        )  # fmt: skip
    yield config, site
    process.terminate()
    process.wait(60)


def until(found: Callable[[], Any], text: str) -> Any:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.2)
    pytest.fail(f"never: {text}")


def test_the_status_carries_the_last_line_of_the_exception(node: Node) -> None:
    config, _ = node
    told = until(lambda: WORDS in exoctl(config, "engine", "status").stdout.replace("\n", " "), "the worker's end")
    assert told
    status = json.loads(exoctl(config, "status", "--json").stdout)
    assert status["engine"]["ranks"][0]["restarts"] >= 1


def test_a_client_that_asks_is_told_the_cause(node: Node) -> None:
    port = tomllib.loads(node[0].read_text())["api"]["port"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=30)
    assert WORDS in json.loads(refused.value.read())["error"]["message"]


def test_doctor_and_preflight_name_the_package_and_the_command(node: Node) -> None:
    config, site = node
    found = json.loads(exoctl(config, "doctor", "--json").stdout)["findings"]
    (finding,) = [one for one in found if one["code"] == "package_missing"]
    assert finding["text"] == f"{LOST} is not installed, and exod needs it"
    python = site.parents[2] / "bin" / "python"
    assert finding["cure"].startswith(f"uv pip install --python {python} '{LOST}>=")
    checks = json.loads(exoctl(config, "preflight", "--json").stdout)["checks"]
    (check,) = [one for one in checks if one["name"] == "packages"]
    assert not check["ok"]
    assert check["text"] == finding["text"]


def test_a_daemon_that_lacks_a_package_itself_says_so_in_one_line(node: Node) -> None:
    config, site = node
    kept = [entry for entry in site.iterdir() if entry.name.startswith("structlog")]
    aside = [entry.rename(site.parent / entry.name) for entry in kept]
    command = [site.parents[2] / "bin" / "python", "-P", "-m", "exod", "run", "--config", config]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        for entry in aside:
            entry.rename(site / entry.name)
    assert done.returncode == 1
    whole = "exod's environment is not whole: uv pip install "
    assert done.stderr.startswith(f"exod: No module named 'structlog'; {whole}")
    assert "structlog>=" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_exoctl_that_lacks_a_package_says_so_in_one_line(node: Node) -> None:
    config, site = node
    aside = [entry.rename(site.parent / entry.name) for entry in site.iterdir() if entry.name.startswith("msgspec")]
    command = [
        site.parents[2] / "bin" / "python",
        "-P",
        "-m",
        "exod.cli.main",
        "--config",
        config,
        "status",
        "--json",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        for entry in aside:
            entry.rename(site / entry.name)
    assert done.returncode == 1
    whole = "exod's environment is not whole: uv pip install "
    assert done.stderr.startswith(f"exoctl: No module named 'msgspec'; {whole}")
    assert "msgspec>=" in done.stderr
    assert done.stderr.count("\n") == 1
    told = json.loads(done.stdout)
    assert (told["schema"], told["error"]["code"], told["error"]["exit_code"]) == (1, "package_missing", 1)


def test_once_it_is_there_again_the_node_serves_by_itself(node: Node) -> None:
    config, site = node
    for entry in Path(sysconfig.get_path("purelib")).glob(f"{LOST}*"):
        (site / entry.name).symlink_to(entry)
    ready = exoctl(config, "wait", "--for", "ready", "--timeout", READY_WITHIN_S)
    assert ready.returncode == 0, f"{ready.stderr}\n{exoctl(config, 'status').stdout}"
    assert exoctl(config, "chat", "count from 3 to 5").stdout.split()[:3] == ["3", "4", "5"]
    codes = {one["code"] for one in json.loads(exoctl(config, "doctor", "--json").stdout)["findings"]}
    assert "package_missing" not in codes
