"""A daemon that downloads its model: it says so everywhere, and leaves or lets go at once whatever the hub does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from exoengine.embedded import model_folder
from tests.engine_service.stand_in_hub import MODEL, StandInHub, model_files, serving
from tests.test_single_node import BIN, ENDS_WITHIN_S, exoctl, write_config

PATIENCE_S = 60.0
NAME = "exod.engine_service.download_process"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    files = model_files(Path(model_folder("embedded:count")), weights_bytes=2_000_000)
    with serving(StandInHub(files, silent_after=1_200_000)) as one:
        monkeypatch.setenv("HF_ENDPOINT", one.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        yield one


@pytest.fixture
def node(hub: StandInHub, tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Without a terminal, as launchd, systemd and nohup start it."""
    config = write_config(tmp_path, engine={"model": MODEL})
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [BIN / "exod", "run", "--config", config],
        env={name: value for name, value in os.environ.items() if not name.startswith("EXOD_")},
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    yield config, process
    process.kill()
    process.wait()
    log.close()


def until(found: Callable[[], Any], text: str) -> Any:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    pytest.fail(f"never: {text}")


def status(config: Path) -> dict[str, Any]:
    done = exoctl(config, "status", "--json")
    return json.loads(done.stdout) if done.returncode in (0, 4) else {}


def half_of_it(config: Path) -> dict[str, Any] | None:
    """The status, once more than a megabyte is here."""
    report = status(config)
    downloads = report["engine"]["downloads"] if report else []
    return report if downloads and downloads[0]["done_bytes"] > 1_000_000 and report["reasons"] else None


def downloads(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends just now, waited for or not yet
            found += [one] if NAME in one.cmdline() else []
    return found


def test_a_download_is_a_state_that_status_readiness_and_events_name(
    node: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    config, _ = node
    report = until(lambda: half_of_it(config), "the status tells of a megabyte")
    assert report["health"] == "degraded"
    assert [reason["code"] for reason in report["reasons"]] == ["downloading"]
    assert report["engine"]["state"] == "loading"
    assert f"downloads {MODEL}" in report["engine"]["text"]
    port = next(line for line in config.read_text().split("[api]")[1].splitlines() if "port" in line)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port.partition('=')[2].strip()}/ready", timeout=10)
    with refused.value as answer:
        assert answer.code == 503
        assert "downloads" in answer.read().decode()
    assert "downloaded" in exoctl(config, "engine", "status").stdout
    told = [json.loads(line) for line in exoctl(config, "events", "--json").stdout.splitlines()]
    assert any(event["type"] == "engine.downloading" for event in told)


def test_sigterm_during_a_download_ends_the_daemon_and_the_next_one_goes_on(
    node: tuple[Path, subprocess.Popen[bytes]], hub: StandInHub
) -> None:
    config, process = node
    until(lambda: half_of_it(config), "the status tells of a megabyte")
    (child,) = downloads(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENDS_WITHIN_S) == 0
    assert not child.is_running()
    hub.silent_after = None
    hub.asked.clear()
    again = subprocess.Popen(
        [BIN / "exod", "run", "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        ranged = until(lambda: [path for _, path in hub.asked if "bytes=" in path], "it goes on")
        # Which of the files, fetched side by side, comes first is chance; that it does not begin anew is not.
        assert int(ranged[0].partition("bytes=")[2].partition("-")[0]) > 0
    finally:
        again.send_signal(signal.SIGTERM)
        again.wait(ENDS_WITHIN_S)


def test_unload_and_another_load_end_a_download(
    node: tuple[Path, subprocess.Popen[bytes]], hub: StandInHub
) -> None:
    config, process = node
    until(lambda: half_of_it(config), "the status tells of a megabyte")
    assert exoctl(config, "engine", "unload").returncode == 0
    until(lambda: not downloads(process), "the download ends")
    until(lambda: status(config).get("health") == "healthy", "nothing is wanted, nothing is wrong")
    assert exoctl(config, "engine", "load", "--no-wait", MODEL).returncode == 0
    until(lambda: downloads(process), "it is downloaded again")
    assert exoctl(config, "engine", "load", "embedded:count").returncode == 0
    until(lambda: not downloads(process), "the download ends")
    assert exoctl(config, "wait", "--for", "ready", "--timeout", "120").returncode == 0
