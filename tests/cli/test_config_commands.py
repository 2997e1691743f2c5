"""`exoctl config` as people type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def exoctl(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EXOD_")}
    command = [sys.executable, "-P", "-m", "exod.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**environment, **variables}, check=False)


def test_a_sample_is_written_once_checked_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "exod.toml"
    assert exoctl("config", "path", "--config", str(file)).stdout.strip() == str(file)
    made = exoctl("config", "init", "--config", str(file))
    assert (made.returncode, str(file) in made.stdout) == (0, True)
    assert file.stat().st_mode & 0o077 == 0, "a broker's password may be written into it"
    again = exoctl("config", "init", "--config", str(file))
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert exoctl("config", "check", str(file)).stdout.strip() == f"{file}: is right"
    file.write_text(file.read_text().replace("#port = 52415", "port = 52416"))
    shown = exoctl("config", "show", "--config", str(file), "--json", EXOD_MQTT__BROKER="mqtt://me:secret@host:1")
    assert "secret" not in shown.stdout
    settings = {(one["section"], one["key"]): one for one in json.loads(shown.stdout)["settings"]}
    assert settings["api", "port"]["value"] == 52416
    assert settings["api", "port"]["source"] == str(file)
    assert settings["mqtt", "broker"]["source"] == "$EXOD_MQTT__BROKER"
    assert settings["mesh", "port"]["source"] == "default"
    screen = exoctl("config", "show", "--config", str(file))
    assert f"# {file}" in screen.stdout
    assert "port = 52416" in screen.stdout


def test_a_wrong_file_is_named_with_key_and_cure(tmp_path: Path) -> None:
    file = tmp_path / "exod.toml"
    file.write_text("[api]\nprot = 1\n")
    for arguments in (("config", "check", str(file)), ("config", "show", "--config", str(file))):
        done = exoctl(*arguments)
        assert done.returncode == 2
        assert "api.prot" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    missing = exoctl("config", "check", str(tmp_path / "none.toml"))
    assert (missing.returncode, "there is no such file" in missing.stderr) == (2, True)
