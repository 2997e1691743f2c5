"""`exoctl`: all its commands, and the text for a mistyped one.

Decides only which commands there are. It must start fast (`exoctl status` within 200 ms, imports included), so
the modules of commands import nothing heavy before they run, and this one nothing that has to be installed: what is
missing is told in one line. The entry point of the package.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Final

from exod.cli.base.options import (
    Commands,
    Parser,
    Settings,
    add_global_options,
    carry_out,
    global_options_first,
    tell_not_imported,
)
from exod.errors import ExitCode
from exod.plain_text import printable
from exod.platform.standard_streams import fill_closed, replace_what_cannot_be_shown

EXIT_CODES: Final = """\
exit codes:
  0 healthy or done   1 internal error   2 usage   3 no daemon
  4 degraded   5 no path, or the ends disagree   6 timed out
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with one of the contract's codes."""
    fill_closed()
    replace_what_cannot_be_shown()
    given = global_options_first(sys.argv[1:] if arguments is None else arguments)
    Parser.as_json = "--json" in given
    try:
        parser, commands = build()
    except ImportError as error:
        sys.exit(tell_not_imported(error))
    asked = commands.parser_of(_words(given))
    complaint = _not_text(given) or unknown_command(given, commands)
    if complaint:
        asked.error(complaint)
    known, rest = parser.parse_known_args(given)
    if rest:
        asked.error(f"unexpected: {' '.join(rest)}")
    namespace = vars(known)
    function = namespace.pop("function", None)
    if function is None:
        _without_command(given, parser, commands)
    settings = Settings(
        socket=namespace.pop("socket", None),
        config=namespace.pop("config", None),
        as_json=namespace.pop("as_json", False),
        no_color=namespace.pop("no_color", False),
    )
    sys.exit(carry_out(function, settings, namespace))


def build() -> tuple[Parser, Commands]:
    """The parser of everything, and its commands in the order in which help lists them."""
    from exod.cli.commands import (
        bench,
        chat,
        cluster_commands,
        completion,
        config_commands,
        engine_commands,
        event_commands,
        host_commands,
        link_commands,
        model_commands,
        report_commands,
        status_commands,
        top,
    )

    parser = Parser(
        prog="exoctl",
        description="Shows and steers the exod of this host.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_global_options(parser)
    commands = Commands(parser)
    status_commands.register_status(commands)
    link_commands.register(commands)
    engine_commands.register(commands)
    model_commands.register(commands)
    chat.register(commands)
    bench.register(commands)
    event_commands.register(commands)
    top.register(commands)
    status_commands.register_wait(commands)
    host_commands.register(commands)
    cluster_commands.register(commands)
    config_commands.register(commands)
    completion.register(commands, parser)
    report_commands.register(commands)
    engine_commands.register_debug(commands)
    return parser, commands


def _not_text(arguments: Sequence[str]) -> str:
    """The message for bytes that are no text: they cannot be sent to a daemon, nor shown. Empty where all are."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            return f"an argument is no text in UTF-8: {printable(argument, 100)}"
    return ""


def unknown_command(arguments: Sequence[str], commands: Commands) -> str:
    """The message for an unknown command; empty where the command is known, or none was given."""
    words = _words(arguments)
    if not words:
        return ""
    if words[0] not in commands.names:
        return _complaint("command", words[0], commands.names)
    group = commands.groups.get(words[0])
    if group is not None and len(words) > 1 and words[1] not in group.names:
        return _complaint(f"command of {words[0]}", words[1], group.names)
    return ""


def _words(arguments: Sequence[str]) -> list[str]:
    """The first two arguments that are no options: what names a command."""
    words: list[str] = []
    takes_value = False
    for argument in arguments:
        if takes_value:
            takes_value = False
        elif argument in ("--socket", "--config"):
            takes_value = True
        elif not argument.startswith("-"):
            words.append(argument)
    return words[:2]


def _complaint(what: str, word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"there is no {what} '{word}'; {hint}there are: {', '.join(known)}"


def _without_command(arguments: Sequence[str], parser: Parser, commands: Commands) -> None:
    """Nothing was named to do: helps with what could have been."""
    words = _words(arguments)
    if Parser.as_json:
        parser.error(f"{' '.join(['exoctl', *words])} needs a command")
    print(commands.help_of(words[0]) if words else parser.format_help(), end="", file=sys.stderr)
    sys.exit(int(ExitCode.USAGE))


if __name__ == "__main__":
    main()
