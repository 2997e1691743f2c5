"""`exoctl cluster`: the cluster key on this host, how it gets to the next one, and who belongs to it.

Decides nothing about keys (that is `exod.peers.trust`'s); works on the key file without a daemon, because a key is
often moved before the first start. A key that is replaced is kept beside the new one.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from exod.cli.base.options import Commands, Shell
from exod.errors import ExitCode, TrustError

if TYPE_CHECKING:
    from exod.config.settings import Config
    from exod.daemon_api.shapes import ClusterReport


def register(commands: Commands) -> None:
    cluster = commands.group("cluster", "the cluster key: who has it belongs to the cluster", show)
    made = cluster.add("init", init)
    cluster.add("invite", invite)
    joined = cluster.add("join", join)
    joined.add_argument(
        "token",
        nargs="?",
        metavar="TOKEN",
        help="an invitation. Without it exoctl asks, and does not show what is typed; - reads standard input. "
        "Every user of this machine can see a command's arguments, and shells remember them",
    )
    for parser in (made, joined):
        parser.add_argument("--replace", action="store_true", help="move a key that is there already aside")
    cluster.add("show", show)
    forgotten = cluster.add("forget", forget)
    forgotten.add_argument("node", metavar="NODE", help="a node that is down, by its name or id")
    cluster.add("renew-identity", renew_identity)


def forget(shell: Shell, node: str) -> ExitCode:
    """Forgets a node that will not come back, on this host. One that comes back is a member as before."""
    from exod.daemon_api.shapes import Done

    with shell.daemon() as daemon:
        done = daemon.ask("cluster_forget", Done, peer=node)
    if shell.as_json:
        shell.show_value(done)
    else:
        shell.show([done.text, "other nodes that still show it: run this there, too"])
    return ExitCode.OK


def renew_identity(shell: Shell) -> ExitCode:
    """Makes this host another node from its next start on: for a data folder that was copied from another host."""
    from exod.identity import IDENTITY_FILE

    config = _config(shell)
    file = config.node.data_dir / IDENTITY_FILE
    aside = _move_aside(file)
    if aside is None:
        text = "there was no identity yet; the first start makes one"
    else:
        text = f"the identity before is in {aside}; the next start of exod makes a new one"
    if shell.as_json:
        shell.show_value({"text": text, "moved_aside": str(aside) if aside else None})
    else:
        shell.show([text])
    return ExitCode.OK


def _config(shell: Shell) -> Config:
    from exod.config.settings import load

    return load(shell.config_file)


def show(shell: Shell) -> ExitCode:
    """The cluster's name, its key's fingerprint, and, from a running daemon, its nodes."""
    from exod.cli.base.client import NoDaemonError, understood
    from exod.cli.screens.engine import cluster_screen
    from exod.daemon_api.shapes import ClusterReport

    try:
        with shell.daemon() as daemon:
            data = daemon.raw("cluster")
    except NoDaemonError:
        report = _report_of_file(_config(shell))
        if shell.as_json:
            shell.show_value(report)
        else:
            note = "no exod is running here: its nodes are not known"
            shell.show([*cluster_screen(report, shell.paint()), note])
        return ExitCode.OK
    if shell.as_json:
        shell.show_json(data)
    else:
        shell.show(cluster_screen(understood(data, ClusterReport), shell.paint()))
    return ExitCode.OK


def _report_of_file(config: Config) -> ClusterReport:
    from exod.daemon_api.shapes import ClusterReport
    from exod.peers.trust import key_fingerprint, read_key

    file = config.cluster.key_file
    return ClusterReport(config.cluster.name, str(file), key_fingerprint(read_key(file)), ())


def init(shell: Shell, replace: bool) -> ExitCode:
    """Makes a new key: the beginning of a cluster."""
    from exod.peers.trust import create_key

    config = _config(shell)
    file = config.cluster.key_file
    aside = _move_aside(file) if replace else None
    _tell(shell, config, create_key(file), "a new key was made", aside)
    return ExitCode.OK


def invite(shell: Shell) -> ExitCode:
    """Prints the invitation for another machine. It is the secret itself: whoever reads it can join."""
    from exod.peers.trust import invite_token, read_key

    config = _config(shell)
    token = invite_token(read_key(config.cluster.key_file), config.cluster.name)
    if shell.as_json:
        shell.show_value({"token": token, "command": "exoctl cluster join"})
        return ExitCode.OK
    shell.show([token])
    if sys.stdout.isatty():
        print(
            "run on the other machine: exoctl cluster join, which asks for it and does not show it", file=sys.stderr
        )
        print("it is the cluster's secret: show it to nobody else", file=sys.stderr)
    return ExitCode.OK


def asked(token: str | None) -> str:
    """The invitation, from wherever it is given."""
    if token not in (None, "-"):
        return token or ""
    if token is None and sys.stdin.isatty():
        import getpass

        return getpass.getpass("invitation (it is not shown): ")
    return sys.stdin.readline()


def join(shell: Shell, token: str | None, replace: bool) -> ExitCode:
    """Takes over the key of an invitation: this node belongs to that cluster from its next start on."""
    from exod.peers.trust import join_token, key_fingerprint, read_key, write_key

    config = _config(shell)
    name, key = join_token(asked(token))
    file = config.cluster.key_file
    aside = None
    if file.exists():
        present = read_key(file)
        if present == key:
            _tell(shell, config, key, "this key is here already", None)
            return ExitCode.OK
        if not replace:
            raise TrustError(
                f"{file}: this node has another key ({key_fingerprint(present)}); "
                "to move it aside and join, add --replace"
            )
        aside = _move_aside(file)
    write_key(file, key)
    _tell(shell, config, key, f"joined the cluster {name}", aside)
    if name != config.cluster.name and not shell.as_json:
        where = config.source or "the configuration"
        print(f'set [cluster] name = "{name}" in {where}: it is {config.cluster.name} now', file=sys.stderr)
    return ExitCode.OK


def _move_aside(file: Path) -> Path | None:
    """Renames a file, so that nothing is lost; None where there is none."""
    aside = file.with_name(f"{file.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        os.rename(file, aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrustError(f"{file}: cannot be moved aside: {error.strerror}") from None
    return aside


def _tell(shell: Shell, config: Config, key: bytes, what: str, aside: Path | None) -> None:
    from exod.peers.trust import key_fingerprint

    file = config.cluster.key_file
    if shell.as_json:
        done = {"text": what, "key_file": str(file), "key_fingerprint": key_fingerprint(key)}
        shell.show_value({**done, "moved_aside": str(aside) if aside else None})
        return
    lines = [f"{what}: {key_fingerprint(key)} in {file}"]
    lines += [f"the key before it is in {aside}"] if aside else []
    lines += ["a running exod takes it over at its next start"] if config.control_socket.exists() else []
    shell.show(lines)
