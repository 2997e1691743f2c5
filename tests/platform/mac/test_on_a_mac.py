"""What would keep the suite or the Makefile from running on a Mac, found without one."""

from __future__ import annotations

import re
from pathlib import Path

from tests import conftest

ROOT = Path(__file__).parents[3]

GNU_ONLY = re.compile(
    r"\bsed -(?:i|r)|\bsed [^|]*\\t|\bps -[^ ]*--|\bdate -d|\bgrep -P|\breadlink -f|\bcp -t|\bxargs -r"
)


def test_no_target_uses_what_only_gnu_tools_know() -> None:
    for name in ("Makefile", ".ci/run"):
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            assert not GNU_ONLY.search(line), f"{name}:{number}: {line}"


def test_a_socket_in_a_tests_folder_fits_into_an_address_on_a_mac() -> None:
    """Of a user with a long name, in a test with a long name: pytest shortens that to 30 characters."""
    assert '"PYTEST_DEBUG_TEMPROOT", "/tmp"' in Path(conftest.__file__).read_text()
    longest = f"/private/tmp/pytest-of-{'u' * 20}/pytest-999/{'t' * 30}0/data/exod.sock"
    assert len(longest.encode()) < 104


def test_a_second_loopback_address_is_asked_for_where_a_test_needs_one() -> None:
    allowed = {"test_settings.py", "test_mesh_driver.py", "conftest.py", "test_on_a_mac.py"}
    allowed |= {"test_linux.py", "test_rendezvous.py"}  # Linux alone runs them
    for path in (ROOT / "tests").rglob("*.py"):
        if path.name in allowed or "lab" in path.parts or "sim" in path.parts:
            continue
        text = path.read_text()
        if re.search(r"127\.0\.0\.[2-9]", text):
            assert "second_loopback" in text, path


LINUX_ONLY = re.compile(r"/proc/|/sys/class|AF_NETLINK|AF_PACKET|SO_ATTACH_FILTER|getsockopt\([^)]*SO_BINDTODEVICE")


def test_what_only_linux_has_is_skipped_or_asked_for() -> None:
    """A test that meets it says so: by the system's name, or by looking whether it is there."""
    asks = re.compile(r"sys\.platform|\.system ==|\.exists\(\)|linux", re.IGNORECASE)
    for path in (ROOT / "tests").rglob("*.py"):
        if "lab" in path.parts or "bench" in path.parts or path.name == "test_on_a_mac.py":
            continue  # the lab as a whole says that it needs Linux and root
        text = path.read_text()
        assert not LINUX_ONLY.search(text) or asks.search(text), path
