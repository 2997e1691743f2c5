"""One node on this machine, as a newcomer starts it: real processes, the demo model, a broker, mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from exoengine.embedded import model_folder
from tests.conftest import missing

BIN = Path(sys.executable).parent
READY_WITHIN_S = "120"
ENDS_WITHIN_S = 30.0
"""The promise is 5 s for Ctrl-C; a busy machine is given more, a hang is not."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(folder: Path, **sections: dict[str, object]) -> Path:
    """A configuration for a node that touches nothing but loopback."""
    config: dict[str, dict[str, object]] = {
        "node": {"name": "solo", "data_dir": str(folder / "data")},
        "cluster": {"mdns": False},
        "mesh": {"port": free_port(), "include": ["lo", "lo0"]},
        "engine": {"ring_port": free_port()},
        "api": {"port": free_port()},
        "mqtt": {"broker": "off"},
    }
    for section, entries in sections.items():
        config[section] = config.get(section, {}) | entries
    lines = []
    for section, entries in config.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in entries.items())]
    file = folder / "exod.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def start(config: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXOD_")}
    return subprocess.Popen(
        [BIN / "exod", "run", "--config", config],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def exoctl(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "exoctl", "--config", config, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


def refused(config: Path) -> tuple[int, str]:
    """(exit code, what was said) of a start that must fail by itself."""
    process = start(config)
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A mosquitto of the test's own; its port."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if found is None or shutil.which("mosquitto_sub") is None:
        missing("mosquitto and mosquitto-clients are not installed")
    assert found is not None
    port = free_port()
    config = tmp_path_factory.mktemp("broker") / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    process = subprocess.Popen([found, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield port
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, broker: int) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    config = write_config(tmp_path_factory.mktemp("solo"), mqtt={"broker": f"mqtt://127.0.0.1:{broker}"})
    process = start(config)
    ready = exoctl(config, "wait", "--for", "ready", "--timeout", READY_WITHIN_S)
    assert ready.returncode == 0, f"{ready.stderr}\n{exoctl(config, 'status').stdout}"
    yield config, process
    process.kill()
    process.wait()


def test_a_terminal_that_is_closed_ends_the_daemon_in_order(tmp_path: Path) -> None:
    """Else its workers live on for a minute, and its peers take it for dead."""
    config = write_config(tmp_path)
    process = start(config)
    try:
        assert exoctl(config, "wait", "--for", "ready", "--timeout", READY_WITHIN_S).returncode == 0
        process.send_signal(signal.SIGHUP)
        said, _ = process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "exod_leaving" in said
    assert not list((tmp_path / "data").glob("*.sock"))


def test_the_status_is_healthy_and_names_the_model(node: tuple[Path, subprocess.Popen[str]]) -> None:
    done = exoctl(node[0], "status")
    assert done.returncode == 0, done.stdout
    assert "healthy" in done.stdout
    assert "embedded:count" in done.stdout


def test_the_demo_model_counts(node: tuple[Path, subprocess.Popen[str]]) -> None:
    done = exoctl(node[0], "chat", "count from 3 to 60")
    assert done.returncode == 0, done.stderr
    assert [int(number) for number in re.findall(r"\d+", done.stdout)] == list(range(3, 61))


def test_several_clients_are_answered_at_once_though_the_worker_is_killed(
    node: tuple[Path, subprocess.Popen[str]],
) -> None:
    """Each gets its own numbers, none lost or doubled, and they were under way together."""
    config = node[0]
    command = [BIN / "exoctl", "--config", config, "chat"]
    asked = [(start, start + 60) for start in (1, 101, 301, 501)]
    clients = [
        subprocess.Popen([*command, f"count from {a} to {b}"], stdout=subprocess.PIPE, text=True) for a, b in asked
    ]
    together, killed = 0, False
    while any(client.poll() is None for client in clients):
        engine = json.loads(exoctl(config, "status", "--json").stdout)["engine"]
        together = max(together, engine["active"])
        if together > 1 and not killed:
            killed = True
            os.kill(engine["ranks"][0]["pid"], signal.SIGKILL)
    for (a, b), client in zip(asked, clients, strict=True):
        said, _ = client.communicate(timeout=60)
        assert re.findall(r"\d+", said.splitlines()[0]) == [str(number) for number in range(a, b + 1)], said
    assert together > 1


def test_a_subscriber_finds_the_topics(node: tuple[Path, subprocess.Popen[str]], broker: int) -> None:
    command = ["mosquitto_sub", "-p", str(broker), "-t", "exo/#", "-v", "-C", "4", "-W", "30"]
    heard = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    topics = {line.split(" ", 1)[0] for line in heard.splitlines()}
    identity = json.loads((Path(node[0]).parent / "data" / "identity.json").read_text())["id"]
    assert {f"exo/1/home/node/{identity}/availability", "exo/1/home/mesh/state"} <= topics, heard


def test_a_second_daemon_on_the_same_folder_is_one_line_and_exit_code_1(
    node: tuple[Path, subprocess.Popen[str]],
) -> None:
    code, said = refused(node[0])
    assert (code, said.count("\n")) == (1, 1), said
    assert "another exod" in said


def test_a_port_in_use_is_one_line_that_names_it(node: tuple[Path, subprocess.Popen[str]], tmp_path: Path) -> None:
    port = int(re.search(r"\[mesh\]\nport = (\d+)", node[0].read_text())[1])  # type: ignore[index]
    code, said = refused(write_config(tmp_path, mesh={"port": port, "include": ["lo", "lo0"]}))
    assert (code, said.count("\n")) == (1, 1), said
    assert f"port {port}" in said


def test_a_worker_that_crashes_is_told_with_its_signal_and_replaced(
    node: tuple[Path, subprocess.Popen[str]],
) -> None:
    config = node[0]
    (rank,) = json.loads(exoctl(config, "status", "--json").stdout)["engine"]["ranks"]
    os.kill(rank["pid"], signal.SIGABRT)
    end = time.monotonic() + 30
    while not (crashes := json.loads(exoctl(config, "status", "--json").stdout)["crashes"]):
        assert time.monotonic() < end, "the status never tells of the crash"
        time.sleep(0.2)
    text = f"worker (pid {rank['pid']}) crashed with SIGABRT"
    assert crashes[0]["text"].startswith(text)
    assert text in " ".join(exoctl(config, "status").stdout.split())
    events = [json.loads(line) for line in exoctl(config, "events", "--json").stdout.splitlines()]
    (seen,) = [event for event in events if event["type"] == "crash.seen"]
    assert (seen["pid"], seen["gpu_watchdog"]) == (rank["pid"], False)
    doctor = json.loads(exoctl(config, "doctor", "--json").stdout)
    assert [finding for finding in doctor["findings"] if finding["code"] == "crash_seen" and finding["cure"]]
    # What the worker says of its MLX: the next one has yet to start, and until then another fact says that.
    while not any(fact.startswith("mlx ") for fact in doctor["facts"]):
        assert time.monotonic() < end, "no worker came after the one that crashed"
        doctor = json.loads(exoctl(config, "doctor", "--json").stdout)
    assert "the switch of mlx_patches is not in this MLX" in doctor["facts"]
    assert exoctl(config, "wait", "--timeout", READY_WITHIN_S).returncode == 0


def test_ctrl_c_ends_it_and_leaves_nothing_behind(node: tuple[Path, subprocess.Popen[str]]) -> None:
    config, process = node
    family = psutil.Process(process.pid).children(recursive=True)
    assert family, "it has a worker"
    process.send_signal(signal.SIGINT)
    assert process.wait(ENDS_WITHIN_S) == 0
    gone, alive = psutil.wait_procs(family, timeout=ENDS_WITHIN_S)
    assert not alive, f"{len(gone)} ended, {alive} were left behind"
    left = {file.name for file in (config.parent / "data").iterdir() if file.is_socket() or file.suffix == ".pid"}
    assert not left
    assert exoctl(config, "status").returncode == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[mesh\nport = 1", "is not valid TOML"),
        ("[mesh]\nport = 99999", "mesh.port = 99999: allowed is a whole number from 1 to 65535"),
        ("[mesh]\nprot = 1", "mesh.prot: there is no such key"),
        ('[api]\nhost = "0.0.0.0"', "api.key_file"),
    ],
)
def test_a_broken_config_is_one_line_and_exit_code_2(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "exod.toml"
    file.write_text(text)
    code, said = refused(file)
    assert (code, said.count("\n")) == (2, 1), said
    assert words in said
    assert str(file) in said


def test_a_missing_config_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    code, said = refused(tmp_path / "nowhere.toml")
    assert (code, said.count("\n")) == (2, 1), said


def test_a_data_folder_that_cannot_be_made_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = write_config(tmp_path, node={"data_dir": str(tmp_path / "file" / "data")})
    code, said = refused(config)
    assert (code, said.count("\n")) == (1, 1), said
    assert "data folder" in said


def test_a_key_that_others_can_read_is_refused_with_the_cure(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    key = tmp_path / "data" / "cluster.key"
    key.parent.mkdir()
    key.write_text("ab" * 32)
    key.chmod(0o644)
    code, said = refused(config)
    assert (code, said.count("\n")) == (2, 1), said
    assert f"chmod 600 {key}" in said


def test_doctor_warns_of_the_environment_that_the_daemon_really_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, engine={"enabled": False, "ring_port": free_port()})
    monkeypatch.setenv("MLX_METAL_FAST_SYNCH", "1")
    process = start(config)
    monkeypatch.delenv("MLX_METAL_FAST_SYNCH")
    try:
        assert exoctl(config, "wait", "--for", "healthy", "--timeout", "60").returncode == 0
        found = json.loads(exoctl(config, "doctor", "--json").stdout)["findings"]
    finally:
        process.kill()
        process.communicate()
    (finding,) = [one for one in found if one["code"] == "fast_synch"]
    assert "the running daemon's environment" in finding["text"]


def test_a_missing_model_folder_leaves_the_node_up_and_says_why_in_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, engine={"model": str(tmp_path / "no-model"), "ring_port": free_port()})
    process = start(config)
    try:
        end = time.monotonic() + 60
        status = exoctl(config, "status")
        while "failed" not in status.stdout and time.monotonic() < end:
            time.sleep(0.2)
            status = exoctl(config, "status")
        assert status.returncode == 4, status.stdout
        assert f"the model folder {tmp_path / 'no-model'} does not exist" in " ".join(status.stdout.split())
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if "does not exist" in line]) == 1, said


def test_a_model_that_no_memory_holds_is_refused_with_the_sum_wherever_it_is_asked_for(tmp_path: Path) -> None:
    """A weight file of 1 TiB that holds nothing: it would be read only after it was found to fit."""
    folder, size = tmp_path / "vast", 1 << 39
    shutil.copytree(model_folder("embedded:count"), folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 2}))
    tensors = {
        f"model.layers.{index}.weight": {
            "dtype": "U8",
            "shape": [size],
            "data_offsets": [index * size, (index + 1) * size],
        }
        for index in range(2)
    }
    header = json.dumps(tensors).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * size)
    config = write_config(tmp_path, engine={"model": str(folder)})
    process = start(config)
    try:
        assert exoctl(config, "wait", "--for", "ready", "--timeout", "5").returncode == 6
        said = " ".join(exoctl(config, "status").stdout.split())
        assert "layers 0 to 1 need 1024.00 GiB (1024.00 GiB of weights)" in said
        refused_chat = exoctl(config, "chat", "count from 1 to 3")
        assert refused_chat.returncode != 0
        assert "1024.00 GiB in all" in refused_chat.stderr
    finally:
        process.terminate()
        process.wait(ENDS_WITHIN_S)
