"""What a Mac user installs: the wheel runs in an empty environment, and every dependency has a wheel for a Mac."""

from __future__ import annotations

import importlib.util
import json
import os
import plistlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from launchd import formula
from launchd.supported import complaint
from tests.conftest import missing
from tests.platform.mac.resolve import resolve
from tests.platform.mac.test_first_hour import FROM_A_NODE, in_the_document
from tests.test_single_node import READY_WITHIN_S, write_config

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the sdist, as `make dist` builds them."""
    folder = tmp_path_factory.mktemp("dist")
    argv = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def environment(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone; its dependencies are this environment's, and under CI installed."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=300)
    (wheel,) = dist.glob("*.whl")
    # What is imported is compiled then; most of what is installed is not.
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--no-compile"]
    pip += ["--quiet", "--disable-pip-version-check"]
    if os.environ.get("CI") == "true":
        pip += ["--constraint", str(ROOT / "constraints.txt")]
    else:
        pip += ["--no-deps"]
        (site,) = folder.glob("lib/python*/site-packages")
        # A path in a .pth file brings packages and not what their own .pth files add: exod comes from the wheel.
        ours = Path(str(importlib.util.find_spec("psutil").submodule_search_locations[0])).parent  # type: ignore[union-attr,index]
        (site / "dependencies.pth").write_text(f"{ours}\n")
    subprocess.run([*pip, str(wheel)], check=True, timeout=900)
    return folder


@pytest.fixture(scope="module")
def namespace() -> Iterator[tuple[str, ...]]:
    """What starts a command where there is loopback and nothing else; empty where no such place is made."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        yield ()
        return
    name = f"exod-wheel-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=60)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=60)
        yield ("ip", "netns", "exec", name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=60)


def run(environment: Path, *argv: str, code: int = 0, namespace: tuple[str, ...] = ()) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EXOD_", "PYTHON"))}
    done = subprocess.run(
        [*namespace, environment / "bin" / argv[0], *argv[1:]],
        cwd=environment,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def test_the_installed_wheel_says_its_version(environment: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(environment, "exod", "--version") == f"{version}\n"
    where = run(environment, "python", "-P", "-c", "import exod; print(exod.__file__)")
    assert Path(where.strip()).is_relative_to(environment)


def test_the_installed_wheel_prints_a_service_and_holds_the_launcher(environment: Path) -> None:
    plist = plistlib.loads(run(environment, "exoctl", "service", "print", "--platform", "darwin").encode())
    assert plist["ProgramArguments"][0].endswith("/Applications/exod.app/Contents/MacOS/exod")
    telling = "from launchd import app; print(len(app.prebuilt()), app.source().is_file())"
    size = (ROOT / "launchd/app/exod-arm64").stat().st_size
    assert run(environment, "python", "-P", "-c", telling) == f"{size} True\n"


def test_the_installed_wheel_answers_in_a_chat(
    environment: Path, namespace: tuple[str, ...], tmp_path: Path
) -> None:
    config = write_config(tmp_path, engine={"model": "embedded:count"})
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EXOD_", "PYTHON"))}
    daemon = subprocess.Popen(
        [*namespace, environment / "bin/exod", "run", "--demo", "--config", config],
        cwd=environment,
        env={**kept, "EXOD_MQTT__BROKER": "embedded"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        exoctl = ("exoctl", "--config", str(config))
        run(environment, *exoctl, "wait", "--for", "ready", "--timeout", READY_WITHIN_S, namespace=namespace)
        loading = run(environment, *exoctl, "engine", "load", "embedded:count", namespace=namespace)
        ready = run(environment, *exoctl, "wait", "--for", "ready", namespace=namespace)
        said = run(environment, *exoctl, "chat", "count from 3 to 12", namespace=namespace)
        status = json.loads(run(environment, *exoctl, "status", "--json", namespace=namespace))
        assert [int(number) for number in re.findall(r"\d+", said)] == list(range(3, 13))
        assert status["engine"]["model"] == "embedded:count"
        shown = {"loading": loading.strip(), "ready": ready.strip(), "answered": said.strip()}
        assert {name: in_the_document()[name] for name in FROM_A_NODE} == shown
    finally:
        daemon.terminate()
        try:
            assert daemon.wait(timeout=60) == 0
        finally:
            daemon.kill()


def test_all_dependencies_have_wheels_for_a_mac() -> None:
    if importlib.util.find_spec("uv") is None:
        missing("the package uv is not installed: make setup-cross")
    done = resolve("15.0", "3.13")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^mlx-metal==", done.stdout, re.MULTILINE)


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)
    }


def test_the_floors_are_the_versions_that_the_tests_run_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = pinned()
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["dev"], *extras["cross"]]:
        found = re.match(r"([A-Za-z0-9._-]+)(?:\[\w+\])?[>=]=([0-9.]+)", requirement)
        assert found is not None, requirement
        assert versions[found[1].lower().replace("_", "-")] == found[2], requirement


def test_a_formula_comes_from_the_metadata(dist: Path, tmp_path: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    text = formula.render(sdist)
    assert "class Exod < Formula" in text
    assert 'license "MIT"' in text
    assert re.search(r'sha256 "[0-9a-f]{64}"', text)
    assert re.search(r'desc "[A-Z][^"]{10,80}"', text)
    if shutil.which("ruby") is not None:
        (tmp_path / "exod.rb").write_text(text)
        subprocess.run(["ruby", "-c", str(tmp_path / "exod.rb")], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("system", "machine", "macos", "python", "words"),
    [
        ("Darwin", "arm64", "15.1", (3, 13, 0), ""),
        ("Linux", "x86_64", "", (3, 11, 2), ""),
        ("Darwin", "x86_64", "15.1", (3, 13, 0), "Apple silicon"),
        ("Darwin", "arm64", "13.6.1", (3, 13, 0), "macOS 14 or newer, this is 13.6.1"),
        ("Darwin", "arm64", "15.1", (3, 9, 6), "brew install python@3.13"),
        ("Linux", "x86_64", "", (3, 10, 0), "PYTHON=/path/to/python3.11"),
    ],
)
def test_a_machine_that_exod_does_not_run_on_is_told_so(
    system: str, machine: str, macos: str, python: tuple[int, int, int], words: str
) -> None:
    said = complaint(system, machine, macos, python)
    assert words in said
    assert bool(words) == bool(said)


def test_nobody_is_told_to_install_a_package_of_that_name_from_the_index() -> None:
    """The name on the package index is not ours."""
    places = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for folder in ("daemon", "engine", "launchd"):
        places += (ROOT / folder).rglob("*.py")
    for path in places:
        assert not re.search(r"pip install (-\S+ )*exod\b", path.read_text()), path
