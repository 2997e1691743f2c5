"""What a person types without exod: the lines of docs/first-hour.md that remove everything that install made."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from exod.cli.service import verbs as service
from tests.cli.test_service import files
from tests.cli.test_service_app import Mac, with_library

DOCUMENT = Path(__file__).parents[3] / "docs" / "first-hour.md"


def lines_by_hand() -> list[str]:
    block = re.search(r"by hand:\n\n```\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert block is not None
    return block[1].splitlines()


def test_an_uninstall_by_hand_leaves_nothing_of_the_service(tmp_path: Path) -> None:
    machine = Mac()
    host = with_library(machine, tmp_path)
    service.install(host=host)
    assert files(tmp_path)
    tools = tmp_path.parent / f"{tmp_path.name}-tools"
    tools.mkdir()
    (tools / "launchctl").write_text(f'#!/bin/sh\necho "$@" >> {tools}/asked\nexit 113\n')
    (tools / "launchctl").chmod(0o755)
    environment = {"HOME": str(host.home), "PATH": f"{tools}:{os.environ['PATH']}"}
    lines = lines_by_hand()
    assert len(lines) <= 5
    for line in lines:
        subprocess.run(["/bin/sh", "-c", line], env=environment, check=False, timeout=60)
    assert files(tmp_path) == []
    asked = (tools / "asked").read_text().split()
    assert {"bootout"} <= set(asked)
    assert any(one.startswith("gui/") for one in asked)
    assert any(one.startswith("user/") for one in asked)
