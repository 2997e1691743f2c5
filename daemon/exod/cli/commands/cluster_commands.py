"""`exoctl cluster`: the cluster key on this host, how it gets to the next one, and who belongs to it.

Decides nothing about keys (that is `exod.peers.trust`'s); works on the key file without a daemon, because a key is
often moved before the first start. A key that is replaced is kept beside the new one.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exod.cli.base import values
from exod.cli.base.options import Commands, Shell, UsageError
from exod.errors import ExitCode, TrustError

if TYPE_CHECKING:
    from exod.config.settings import Config
    from exod.daemon_api.shapes import ClusterReport, Done

DEFAULT_INVITED: Final = "10m"
"""Long enough to walk to the other machine."""

MIN_INVITED_S: Final = 1.0
MAX_INVITED_S: Final = 7 * 86_400.0
"""What the daemon takes: a door that stays open for longer is no invitation."""


def register(commands: Commands) -> None:
    cluster = commands.group("cluster", "the cluster key: who has it belongs to the cluster", show)
    made = cluster.add("init", init)
    invited = cluster.add("invite", invite)
    invited.add_argument(
        "--for",
        dest="for_s",
        metavar="TIME",
        help="an invitation that ends: seconds, 10m, 2h. The running daemon redeems it, and the cluster key is not "
        "in it. Without --for or --once the key itself is printed, which needs no daemon and never ends",
    )
    invited.add_argument("--once", action="store_true", help="for one node alone; without --for: for 10m")
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
    cluster.add("rotate", rotate)
    removed = cluster.add("remove", remove)
    removed.add_argument(
        "node", type=values.name, metavar="NODE", help="the node that is left out, by its name or id"
    )
    forgotten = cluster.add("forget", forget)
    forgotten.add_argument("node", type=values.name, metavar="NODE", help="a node that is down, by its name or id")
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


def rotate(shell: Shell) -> ExitCode:
    """Gives the whole cluster a new key, while it runs. Who is away takes it over when it returns."""
    from exod.daemon_api.shapes import Done

    with shell.daemon() as daemon:
        done = daemon.ask("cluster_rotate", Done)
    _show_done(shell, done)
    return ExitCode.OK


def remove(shell: Shell, node: str) -> ExitCode:
    """Gives all but one node a new key: that one belongs to the cluster no more."""
    from exod.daemon_api.shapes import Done

    with shell.daemon() as daemon:
        done = daemon.ask("cluster_remove", Done, peer=node)
    _show_done(shell, done)
    return ExitCode.OK


def _show_done(shell: Shell, done: Done) -> None:
    if shell.as_json:
        shell.show_value(done)
    else:
        shell.show(done.text.split("; "))


def renew_identity(shell: Shell) -> ExitCode:
    """Makes this host another node from its next start on: for a data folder that was copied from another host."""
    from exod.identity import IDENTITY_FILE
    from exod.peers.trust import NODE_KEY_FILE

    config = _config(shell)
    file = config.node.data_dir / IDENTITY_FILE
    aside = _move_aside(file)
    _move_aside(config.node.data_dir / NODE_KEY_FILE)
    if aside is None:
        text = "there was no identity yet; the first start makes one"
    else:
        text = f"the identity before is in {aside}; the next start of exod makes a new one"
    restart = _restart_text(config)
    if shell.as_json:
        done = {"text": text, "moved_aside": str(aside) if aside else None, "restart_needed": bool(restart)}
        shell.show_value(done)
    else:
        shell.show([text, restart] if restart else [text])
    return ExitCode.OK


def _restart_text(config: Config) -> str:
    """What a running daemon needs for it; empty where none runs."""
    runs = config.control_socket.exists()
    return "exod runs here and goes on as before until you restart it: do that now" if runs else ""


def _config(shell: Shell) -> Config:
    """The configuration whose key file and data folder are meant. Where only --socket is said, the daemon behind it
    names them: those of the default configuration may be another cluster's. Raises NoDaemonError.
    """
    from exod.config.settings import load

    config = load(shell.config_file)
    if shell.named_socket is None or shell.config_file is not None:
        return config
    import msgspec

    from exod.daemon_api.shapes import ClusterReport

    with shell.daemon() as daemon:
        report = daemon.ask("cluster", ClusterReport)
    cluster = msgspec.structs.replace(config.cluster, name=report.name, key_file=Path(report.key_file))
    node = msgspec.structs.replace(config.node, data_dir=shell.named_socket.resolve().parent)
    return msgspec.structs.replace(config, cluster=cluster, node=node, source=None)


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
        report = understood(data, ClusterReport)
        shell.show([*cluster_screen(report, shell.paint()), *_other_key_in_file(report)])
    return ExitCode.OK


def _other_key_in_file(report: ClusterReport) -> list[str]:
    """Says so where the daemon runs with another key than its file holds by now."""
    from exod.peers.trust import key_fingerprint, read_key

    try:
        written = key_fingerprint(read_key(Path(report.key_file)))
    except TrustError:
        return []
    if written == report.key_fingerprint:
        return []
    return [f"the key file holds another key by now ({written}): restart exod here, and it takes that one over"]


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


def invite(shell: Shell, for_s: str | None, once: bool) -> ExitCode:
    """Prints the invitation for another machine: with --for one that ends, else the cluster's secret itself."""
    from exod.peers.trust import invite_token, read_key

    if for_s is not None or once:
        return _invite_for(shell, DEFAULT_INVITED if for_s is None else for_s, once)
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
        print("an exod that runs there takes it over when it is restarted; none has to be here", file=sys.stderr)
        print("it is the cluster's secret: show it to nobody else", file=sys.stderr)
    return ExitCode.OK


def _invite_for(shell: Shell, for_s: str, once: bool) -> ExitCode:
    from exod.cli.commands.engine_commands import seconds
    from exod.daemon_api.shapes import Invited

    length_s = seconds(for_s)
    if not MIN_INVITED_S <= length_s <= MAX_INVITED_S:
        raise UsageError(f"--for: {for_s}: expected 1s to 7d")
    with shell.daemon() as daemon:
        invited = daemon.ask("cluster_invite", Invited, for_s=length_s, once=once)
    if shell.as_json:
        shell.show_value(invited)
        return ExitCode.OK
    shell.show([invited.token])
    if sys.stdout.isatty():
        until = time.strftime("%H:%M", time.localtime(invited.until))
        uses = "one node may use it" if once else "any node may use it"
        print(
            f"{uses} until {until}, while exod runs here: exoctl cluster join, which asks for it", file=sys.stderr
        )
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
    from exod.peers.trust import key_fingerprint, read_key, write_key

    config = _config(shell)
    name, key = _redeemed(config, asked(token).strip())
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


def _redeemed(config: Config, word: str) -> tuple[str, bytes]:
    """(cluster name, key) of an invitation of either kind."""
    from exod.peers import invitation
    from exod.peers.trust import join_token, node_key

    if not word.startswith(invitation.PREFIX):
        return join_token(word)
    door = invitation.read_invitation(word)
    return door.cluster, invitation.redeem(door, node_key(config.node.data_dir))


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
        restart_needed = bool(_restart_text(config))
        moved = {"moved_aside": str(aside) if aside else None, "restart_needed": restart_needed}
        shell.show_value({**done, **moved})
        return
    lines = [f"{what}: {key_fingerprint(key)} in {file}"]
    lines += [f"the key before it is in {aside}"] if aside else []
    shell.show([*lines, restart] if (restart := _restart_text(config)) else lines)
