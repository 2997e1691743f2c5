"""The options that every command of `exoctl` has, and what every command shares: sockets, output, exit codes.

Decides that `--socket`, `--config`, `--json` and `--no-color` work before and after a command alike, that an error
is one line on standard error (with `--json` also an object on standard output), and which exit code it means.
Imported at every start: nothing heavy here (argparse, because typer takes 150 ms to import).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from exod import VERSION
from exod.cli.base.values import path
from exod.errors import ExitCode, ExodError, RequestError
from exod.plain_text import printable
from exod.platform.standard_streams import drop_unwritten

if TYPE_CHECKING:
    from exod.cli.base.client import DaemonClient
    from exod.cli.base.paint import Paint

INTERRUPTED: Final = 130
"""128 + SIGINT, as shells expect it."""

JSON_SCHEMA: Final = 1
"""In every object that a command prints: it rises when a field is renamed or goes. The status has its own."""

DEFAULT_WIDTH: Final = 100
"""Columns where standard output is not a terminal."""


class Settings(NamedTuple):
    """What the global options say."""

    socket: Path | None = None
    config: Path | None = None
    as_json: bool = False
    no_color: bool = False


class UsageError(ExodError):
    """What was typed cannot be meant."""

    exit_code = ExitCode.USAGE


class Shell:
    """What a command has to work with: its settings, the daemon, and the terminal."""

    def __init__(self, settings: Settings) -> None:
        self.as_json = settings.as_json
        self._settings = settings

    @property
    def config_file(self) -> Path | None:
        return self._settings.config

    @property
    def named_socket(self) -> Path | None:
        """What --socket says; None where it is not given."""
        return self._settings.socket

    @property
    def color(self) -> bool:
        """Colour only for people: a terminal, no `--no-color`, no NO_COLOR (https://no-color.org)."""
        wanted = not self._settings.no_color and not os.environ.get("NO_COLOR")
        return wanted and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return terminal_size()[0]

    def paint(self) -> Paint:
        from exod.cli.base.paint import Paint

        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        return Paint(color=self.color, unicode=encoding.startswith("utf"))

    def socket_path(self) -> Path:
        """--socket, else the one of the configuration's data folder. Raises ConfigError."""
        if self._settings.socket is not None:
            return self._settings.socket
        from exod.config.settings import load

        return load(self._settings.config).control_socket

    def daemon(self) -> DaemonClient:
        """Raises NoDaemonError with the command that starts one."""
        from exod.cli.base.client import DaemonClient

        config = self._settings.config
        return DaemonClient(self.socket_path(), f"exod run --config {config}" if config else "exod run")

    def show(self, lines: Iterable[str]) -> None:
        print("\n".join(lines), flush=True)

    def show_json(self, data: bytes) -> None:
        """The daemon's own JSON, laid out for reading."""
        import msgspec

        print(msgspec.json.format(with_schema(data), indent=2).decode(), flush=True)

    def show_json_line(self, data: bytes) -> None:
        """One object of many."""
        print(with_schema(data).decode(), flush=True)

    def show_value(self, value: object) -> None:
        import msgspec

        try:
            data = msgspec.json.encode(value)
        except UnicodeEncodeError:  # the name of a file, or a variable, may be no text
            plain = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
            data = plain.encode("utf-8", "replace")
        self.show_json(data)

    def fail(self, error: ExodError) -> ExitCode:
        """Tells `error` in one line, and returns what it means."""
        print(f"exoctl: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        if self.as_json:
            code = error.code if isinstance(error, RequestError) else error.exit_code.name.lower()
            self.show_value({"error": {"code": code, "text": str(error), "exit_code": int(error.exit_code)}})
        return error.exit_code


def with_schema(data: bytes) -> bytes:
    """A JSON object with `schema` as its first field; one that begins with it is left as it is."""
    if data.startswith(b'{"schema":'):
        return data
    rest = data[1:].lstrip()
    return b'{"schema":%d' % JSON_SCHEMA + (b"" if rest == b"}" else b",") + rest


def terminal_size() -> tuple[int, int]:
    """(columns, lines) of standard output's terminal, as it is now."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return DEFAULT_WIDTH, 1_000_000
    return size.columns or DEFAULT_WIDTH, size.lines or 1_000_000


# --- the command line ---------------------------------------------------------------------------------------

Command = Callable[..., ExitCode]
"""A command: takes a Shell, then what its own arguments say, and returns its exit code."""


class Parser(argparse.ArgumentParser):
    """argparse, with an error that is one line and options that must be written out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    as_json = False
    """Is an error to be an object, too? Set before anything is parsed: an error may come before `--json`."""

    def error(self, message: str) -> NoReturn:
        shell = Shell(Settings(as_json=Parser.as_json))
        raise SystemExit(int(shell.fail(UsageError(f"{message}; see: {self.prog} --help"))))


class Commands:
    """The commands of `exoctl`, or of one of its groups, in the order in which help lists them."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._parsers = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
        self.names: list[str] = []
        self.groups: dict[str, Commands] = {}

    def add(self, name: str, function: Command) -> Parser:
        """A command whose help is its function's docstring; its first sentence stands in the list."""
        parser = self._new(name, " ".join((function.__doc__ or "").split()))
        parser.set_defaults(function=function)
        return parser

    def group(self, name: str, text: str, alone: Command | None = None) -> Commands:
        """Commands with a common first word; `alone` is what that word by itself does."""
        parser = self._new(name, text)
        inner = Commands(parser)
        if alone is not None:
            parser.set_defaults(function=alone)
        self.groups[name] = inner
        return inner

    def set_defaults(self, **values: object) -> None:
        """Arguments of the word by itself."""
        self._parser.set_defaults(**values)

    def help_of(self, name: str) -> str:
        return self._parsers.choices[name].format_help()

    def parser_of(self, words: Sequence[str]) -> Parser:
        """The one whose help belongs to the words that name a command, as far as there is such a command."""
        if not words or words[0] not in self.names:
            return self._parser
        group = self.groups.get(words[0])
        return self._parsers.choices[words[0]] if group is None else group.parser_of(words[1:])

    def _new(self, name: str, text: str) -> Parser:
        parser = self._parsers.add_parser(name, help=_first_sentence(text), description=text)
        add_global_options(parser)
        self.names.append(name)
        return parser


def _first_sentence(text: str) -> str:
    """For the list of commands: it has room for a line each."""
    sentence = text.split(". ")[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:]


def add_global_options(parser: Parser) -> None:
    """The options that hold everywhere. What is not said leaves no trace: what stands before counts."""
    options = parser.add_argument_group("everywhere")
    silent = argparse.SUPPRESS
    options.add_argument("--socket", type=path, metavar="PATH", default=silent, help="the daemon's control socket")
    options.add_argument(
        "--config", type=path, metavar="FILE", default=silent, help="the configuration, to find the socket by"
    )
    options.add_argument("--json", dest="as_json", action="store_true", default=silent, help="print JSON")
    options.add_argument("--no-color", action="store_true", default=silent, help="print without colours")
    options.add_argument("--version", action="version", version=VERSION, help="print the version")


def global_options_first(arguments: Sequence[str]) -> list[str]:
    """The same arguments with the global options in front: argparse would not take one between two positional
    arguments that may be left away. After `--` nothing is an option.
    """
    first: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            rest += [argument, *waiting]
        elif argument in ("--socket", "--config"):
            first += [argument, *itertools.islice(waiting, 1)]
        elif argument in ("--json", "--no-color") or argument.startswith(("--socket=", "--config=")):
            first.append(argument)
        else:
            rest.append(argument)
    return first + rest


def carry_out(function: Command, settings: Settings, given: dict[str, Any]) -> int:
    """Runs a command, and turns whatever ends it into one line and an exit code."""
    shell = Shell(settings)
    try:
        return int(function(shell, **given))
    except ExodError as error:
        return int(shell.fail(error))
    except ImportError as error:
        return tell_not_imported(error)
    except BrokenPipeError:
        return int(ExitCode.OK)  # the reader of our output has closed it (`| head`)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _tell_unexpected(shell, error)
    finally:
        drop_unwritten()


def _tell_unexpected(shell: Shell, error: Exception) -> int:
    """What no command foresaw: output that takes nothing more, or a bug, with its place."""
    try:
        sys.stdout.flush()
    except OSError as unwritten:
        return int(Shell(Settings()).fail(ExodError(f"standard output: {unwritten.strerror}")))
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    text = f"internal error: {type(error).__name__}: {error} ({place}); a bug report needs: exoctl report"
    return int(shell.fail(ExodError(text)))


def tell_not_imported(error: ImportError) -> int:
    """A package that exod needs is missing or broken: one line with the command that brings it. With --json an
    object, too, written without what may be missing.
    """
    from exoengine.installed import why_not_imported

    text, code = printable(why_not_imported(error)), int(ExitCode.INTERNAL)
    print(f"exoctl: {text}", file=sys.stderr)
    if Parser.as_json:
        failure = {"code": "package_missing", "text": text, "exit_code": code}
        print(json.dumps({"schema": JSON_SCHEMA, "error": failure}, indent=2))
    return code
