"""The text of `exoctl links`: why a path is used, or why not, and the command that mends a wrong route.

Decides nothing.
"""

from __future__ import annotations

from exod.core.pair.link import Link
from exod.core.pair.path_rating import rate_path
from exod.core.probe.datagram import RouteVerdict
from exod.core.probe.path import INIT_SAMPLES, USABLE, Path
from exod.core.probe.path_order import comparison, grade
from exod.model import NodeCard, NodeState, PathState
from exod.wrong_route import wrong_route_text

_LOCAL_NETWORK_PRIVACY = 65
"""EHOSTUNREACH on macOS: what Local Network privacy answers while ping still works."""


def why(path: Path, link: Link, platform: str, now: float) -> str:
    """One line on one path."""
    selected = path is link.selected_path
    if path.ineligible:
        return _wrong_route(path, link, platform)
    if path.state not in USABLE:
        return _not_usable(path, link, platform)
    if not path.eligible:
        return (
            "its route is not checked yet" if path.route is RouteVerdict.UNKNOWN else "waits for the peer's check"
        )
    if path.ring.unfit and not selected:
        return _unfit(path, link, now)
    text = f"in use: {link.selection_cause}" if selected else _passed_over(path, link, now)
    if path.ring.unfit:
        text = f"{_unfit(path, link, now)}; {text}"
    if path.state is PathState.DEGRADED:
        text = f"{_cause(path, link)}; {text}"
    return text


def _unfit(path: Path, link: Link, now: float) -> str:
    """Probes pass, the ring does not."""
    if not path.ring.own_unfit:
        return f"not fit for the ring: {link.peer.name} saw it fail"
    return f"not fit for the ring: {path.ring.cause}; tried again in {max(0.0, path.ring.until - now):.0f} s"


def _cause(path: Path, link: Link) -> str:
    return path.cause if path.own is path.state else f"{link.peer.name} reports it {path.peer_own}"


def _not_usable(path: Path, link: Link, platform: str) -> str:
    if path.refused_errno is not None and path.own is not PathState.UP:
        text = f"the system refuses to send (errno {path.refused_errno})"
        if platform == "darwin" and path.refused_errno == _LOCAL_NETWORK_PRIVACY:
            text += ": Local Network privacy? run exoctl doctor"
        return text
    if path.state is PathState.DEAD:
        return f"dead: {_cause(path, link)}"
    if path.heard and path.own is PathState.INIT:
        return f"measuring: {min(path.rtt.samples, INIT_SAMPLES)} of {INIT_SAMPLES} round trips"
    return "no answer yet" if not path.heard else f"waits for {link.peer.name} to measure it"


def _passed_over(path: Path, link: Link, now: float) -> str:
    present = link.selected_path
    if link.liveness.state is NodeState.DOWN:
        return f"{link.peer.name} is down"
    if present is None or present.state not in USABLE:
        return "usable; the next selection may take it"
    mine, its = rate_path(path, link.probes, now), rate_path(present, link.probes, now)
    if grade(mine) >= grade(its):
        return comparison(its, mine)
    if not link.selects:
        return f"better than the one in use: waits for {link.peer.name} to select it"
    hold = link.selector.hold_up_s(path.candidate.path)
    held = now - path.state_since
    if held < hold:
        return f"better: must hold {hold:g} s, has held {held:.1f} s"
    return "better: waits for the dwell or the switch budget"


def _wrong_route(path: Path, link: Link, platform: str) -> str:
    """Name both interfaces and the command that mends it."""
    local, remote = path.candidate.local, path.candidate.remote
    if path.route is not RouteVerdict.WRONG:
        there = link.peer.name
        return f"ineligible: {there}'s route to {local.address} leaves another interface (exoctl links on {there})"
    taken = interface_of(link.me, path.leaves_from) if path.leaves_from is not None else ""
    text = wrong_route_text(local.interface, local.address, remote.address, path.leaves_from, taken, platform)
    return f"ineligible: {text}"


def interface_of(card: NodeCard, address: str) -> str:
    return next((one.interface for one in card.addresses if one.address == address), "another interface")
