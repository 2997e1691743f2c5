"""What a person typed, as the daemon names it: a peer by name or id, a path by id, interface or kind.

Never guesses: what is unknown or could be two things is a RequestError that names what exists. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from exod.daemon_api.interface import DEFAULT_MODEL, DaemonCommands
from exod.daemon_api.shapes import LinkDetail, LinksReport, PathDetail, StatusReport
from exod.errors import ExitCode, RequestError
from exod.model import NodeId, PathId

MIN_ID_PREFIX = 4
"""Shorter beginnings of an id are more likely a mistyped name than meant."""


def find_peer(text: str, status: StatusReport) -> NodeId:
    """The other node that is called `text`, or whose id begins with it."""
    others = [node for node in status.nodes if not node.is_self]
    wanted = text.casefold()
    found = [node for node in others if node.id == text or node.name.casefold() == wanted]
    if not found and len(text) >= MIN_ID_PREFIX:
        found = [node for node in others if node.id.startswith(wanted)]
    if len(found) == 1:
        return found[0].id
    if found:
        ids = ", ".join(node.id for node in found)
        raise RequestError("ambiguous_peer", f"{len(found)} nodes are called '{text}': say one of the ids {ids}")
    if text == status.node.id or wanted == status.node.name.casefold():
        raise RequestError("unknown_peer", f"'{text}' is this node itself; {_known(others_of(status))}")
    raise RequestError("unknown_peer", f"no node is called '{text}'; {_known(others_of(status))}")


def others_of(status: StatusReport) -> list[str]:
    return [node.name for node in status.nodes if not node.is_self]


def _known(names: list[str]) -> str:
    return f"known: {', '.join(names)}" if names else "no other node is known here"


def check_model(name: str, commands: DaemonCommands) -> str:
    """The served model that `name` stands for. Raises RequestError where it is another, or none is loaded."""
    served = commands.models()
    if not served:
        ready = commands.ready()
        raise RequestError(ready.code or "not_ready", ready.text or "no model is loaded", ExitCode.DEGRADED)
    if name in served:
        return name
    if name == DEFAULT_MODEL or name in also_called(commands.full_model()):
        return served[0]
    raise RequestError("model_not_found", f"the model '{name}' is not loaded; served: {', '.join(served)}, default")


def also_called(full: str) -> set[str]:
    """What else people may call the model that was loaded as `full`, which may be a path of this machine."""
    names = {full, full.rstrip("/"), full.rstrip("/").rpartition("/")[2]}
    return names - {""}


def short_name(full: str) -> str:
    """A folder's last part; a repository id and an embedded model as they are."""
    is_folder = full.startswith(("/", "~", ".")) or full.count("/") > 1
    return full.rstrip("/").rpartition("/")[2] if is_folder else full


def find_path(text: str, links: LinksReport) -> PathId:
    """The path whose id, interface, remote address or kind is `text`; the first of these that fits decides."""
    paths = [(link, path) for link in links.links for path in link.paths]
    wanted = text.casefold()
    for field in (_id, _interface, _remote, _kind):
        found = [(link, path) for link, path in paths if field(path).casefold() == wanted]
        if len({path.id for _, path in found}) == 1:
            return found[0][1].id
        if found:
            names = ", ".join(_name(link, path) for link, path in found)
            raise RequestError("ambiguous_path", f"'{text}' is {len(found)} paths: say one of {names}")
    if not paths:
        raise RequestError("unknown_path", "there is no path to any peer here", ExitCode.NO_PATH)
    raise RequestError("unknown_path", f"no path is called '{text}'; known: {_list(paths)}")


def _id(path: PathDetail) -> str:
    return path.id


def _interface(path: PathDetail) -> str:
    return path.interface


def _remote(path: PathDetail) -> str:
    return path.remote


def _kind(path: PathDetail) -> str:
    return path.kind


def _name(link: LinkDetail, path: PathDetail) -> str:
    return f"{path.id} ({path.interface} to {link.peer_name})"


def _list(paths: Iterable[tuple[LinkDetail, PathDetail]]) -> str:
    return ", ".join(_name(link, path) for link, path in paths)
