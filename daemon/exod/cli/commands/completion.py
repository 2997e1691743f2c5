"""`exoctl completion`: the script that makes a shell complete commands and options, by shtab."""

from __future__ import annotations

from exod.cli.base.options import Commands, Parser, Shell
from exod.errors import ExitCode

SHELLS = ("bash", "zsh", "tcsh")
"""Those that shtab knows."""


def register(commands: Commands, whole: Parser) -> None:
    """`whole` is the parser of everything, which is what is completed."""

    def completion(shell: Shell, name: str) -> ExitCode:
        """Prints the completion script for a shell. To try it in zsh: eval "$(exoctl completion zsh)"."""
        import shtab

        script = shtab.complete(whole, name)
        if shell.as_json:
            shell.show_value({"shell": name, "script": script})
        else:
            shell.show([script])
        return ExitCode.OK

    parser = commands.add("completion", completion)
    parser.add_argument("name", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
