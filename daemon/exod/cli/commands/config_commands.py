"""`exoctl config`: where the configuration lies, what is in force, a file to begin with, and whether one is right.

Needs no running daemon, and changes no file but what `init` makes. What is allowed is decided in exod.config.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exod.cli.base import values
from exod.cli.base.options import Commands, Shell
from exod.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from exod.config.settings import Setting


def register(commands: Commands) -> None:
    config = commands.group("config", "the configuration: where, what is in force, a sample, a check", show)
    config.add("path", path)
    config.add("show", show)
    config.add("init", init)
    checked = config.add("check", check)
    checked.add_argument(
        "file", metavar="FILE", nargs="?", type=values.path, help="another file than the one in force"
    )


def path(shell: Shell) -> ExitCode:
    """Where the configuration is read from, whether or not the file is there."""
    from exod.config.settings import config_file

    file = config_file(shell.config_file)
    if shell.as_json:
        shell.show_value({"path": str(file), "exists": file.exists()})
    else:
        shell.show([str(file)])
    return ExitCode.OK


def show(shell: Shell) -> ExitCode:
    """Every key as it is in force, and what sets it."""
    from exod.config.reference import toml_value
    from exod.config.settings import load_settings

    settings = load_settings(shell.config_file)
    if shell.as_json:
        shell.show_value({"settings": [_plain(one) for one in settings]})
        return ExitCode.OK
    paint = shell.paint()
    lines: list[str] = []
    section = ""
    for one in settings:
        if one.section != section:
            section = one.section
            lines += ["", paint.styled(f"[{section}]", "bold")] if lines else [paint.styled(f"[{section}]", "bold")]
        value = f"{one.key} = {toml_value(_plain(one)['value'])}"
        lines.append(
            f"{value:<52}  {paint.styled(f'# {one.source}', 'dim')}" if one.source else paint.styled(value, "dim")
        )
    shell.show(lines)
    return ExitCode.OK


def _plain(one: Setting) -> dict[str, Any]:
    """Without a password: a broker's URL may hold one."""
    from exod.config.settings import SECRET_KEYS

    value: Any = "" if one.value is None else list(one.value) if isinstance(one.value, tuple) else one.value
    if (one.section, one.key) in SECRET_KEYS and "@" in str(value):
        scheme, _, rest = value.partition("://")
        value = f"{scheme}://…@{rest.rpartition('@')[2]}"
    return {"section": one.section, "key": one.key, "value": value, "source": one.source or "default"}


def init(shell: Shell) -> ExitCode:
    """Writes a file with every key and its default as a comment. A file that is there is left alone."""
    from exod.config.reference import sample
    from exod.config.settings import config_file

    file = config_file(shell.config_file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{file}: is there already and is left as it is; see: exoctl config show") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}; name another with --config") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(sample())
    if shell.as_json:
        shell.show_value({"path": str(file)})
    else:
        shell.show([f"wrote {file}: every key with its default; uncomment what is to be changed"])
    return ExitCode.OK


def check(shell: Shell, file: Path | None) -> ExitCode:
    """Reads the configuration as exod would at its start."""
    from exod.config.settings import load

    config = load(file or shell.config_file)
    where = str(config.source) if config.source else "no file: every key has its default"
    if shell.as_json:
        shell.show_value({"ok": True, "path": str(config.source) if config.source else None})
    else:
        shell.show([f"{where}{': is right' if config.source else ''}"])
    return ExitCode.OK
