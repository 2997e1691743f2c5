"""What is wrong with the nodes themselves: silent, left out, of another version, two with one name or one address.

Decides which facts follow from a view; how long they must last is alert_table.py's table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from exod.core.base.facts import VERSION_SKEW, Fact
from exod.core.status.view import NodeEntry, NodeView
from exod.model import Kind, LocalAddress, MeshState, NodeId, NodeState, PathState
from exod.plain_text import and_join, labels, short_id


def node_facts(view: NodeView, explained: Collection[NodeId] = ()) -> Iterator[Fact]:
    """`explained`: nodes of which another fact says already why they are not heard."""
    names = labels((node.id, node.name) for node in view.nodes)
    yield from _silent(view, names, explained)
    yield from _left_out(view, names)
    yield from _same_name(view)
    yield from _same_address(view, names)
    yield from _deaf_pairs(view, names)


def _silent(view: NodeView, names: Mapping[NodeId, str], explained: Collection[NodeId]) -> Iterator[Fact]:
    plan = view.mesh.plan if view.mesh.suspended is None else None
    ring = () if plan is None else plan.ring
    me = names[view.me.id]
    for node in view.nodes:
        name = names[node.id]
        if node.skew and node.state is not NodeState.UP:
            yield Fact(VERSION_SKEW, node.id, node.skew)
        elif node.id in explained:
            continue
        elif node.state is NodeState.DOWN and not node.left and node.id in ring:
            text = f"{me} does not hear {name}, which computes in the plan all the same"
            yield Fact("node_unheard", node.id, f"{text}: look for a cable or a firewall between the two")
        elif node.state is NodeState.DOWN and not node.left:
            yield Fact("node_down", node.id, f"{name} is down: {node.reason}")
        elif node.state is NodeState.SUSPECT:
            yield Fact("node_suspect", node.id, f"{name} does not answer: {node.reason}")


def _left_out(view: NodeView, names: Mapping[NodeId, str]) -> Iterator[Fact]:
    """Nodes that live and would compute, and have no rank in the plan in force."""
    plan = view.mesh.plan
    if plan is None or view.mesh.state is not MeshState.AGREED:
        return
    told = {one.node: one for one in plan.left_out}
    for one in told.values():
        if not one.stands_by:
            yield Fact("node_left_out", one.node, f"{one.name} is left out of the ring: {one.reason}")
    for node in view.nodes:
        if node.state is NodeState.UP and node.engine and node.id not in (*plan.ring, *told) and not node.is_self:
            yield Fact("node_left_out", node.id, f"{names[node.id]} is up, but has not joined the ring yet")


def _live(view: NodeView) -> list[NodeEntry]:
    return [node for node in view.nodes if node.state is not NodeState.DOWN]


def _same_name(view: NodeView) -> Iterator[Fact]:
    by_name: dict[str, list[NodeEntry]] = defaultdict(list)
    for node in _live(view):
        by_name[node.name].append(node)
    for name, nodes in by_name.items():
        if len(nodes) > 1:
            nodes.sort(key=lambda node: node.id)
            who = and_join([f"{short_id(node.id)} ({_places(node)})" for node in nodes])
            cure = "give each a name of its own (node.name)"
            yield Fact("name_twice", nodes[0].id, f"{len(nodes)} live nodes are called {name}: {who}: {cure}")


def _places(node: NodeEntry) -> str:
    return ", ".join(one.address for one in node.addresses) or "no address"


def _same_address(view: NodeView, names: Mapping[NodeId, str]) -> Iterator[Fact]:
    """An address that two live hosts hold: a datagram to it reaches the one or the other by chance. Cables are
    networks of their own, where the same numbers are in use often enough: there it counts where it does not work.
    """
    holders: dict[str, list[tuple[NodeEntry, LocalAddress]]] = defaultdict(list)
    for node in _live(view):
        for one in node.addresses:
            if one.kind is not Kind.LOOPBACK:
                holders[one.address].append((node, one))
    for address, held in sorted(holders.items()):
        if len({node.id for node, _ in held}) < 2:
            continue
        if any(one.kind is Kind.THUNDERBOLT for _, one in held) and not _fails_here(view, held):
            continue
        who = and_join([f"{names[node.id]} ({one.interface})" for node, one in held])
        yield Fact("address_twice", address, f"{address} is held by {who}: give one of them another address")


def _fails_here(view: NodeView, held: list[tuple[NodeEntry, LocalAddress]]) -> bool:
    """Does this node hold it, and reach nobody from it?"""
    mine = next((one for node, one in held if node.is_self), None)
    paths = [path for link in view.links for path in link.paths if mine is not None and path.local == mine.address]
    return mine is not None and not any(path.state is PathState.UP for path in paths)


def _deaf_pairs(view: NodeView, names: Mapping[NodeId, str]) -> Iterator[Fact]:
    """Two live nodes of which neither hears the other, as the nodes themselves tell. A ring goes round such a pair;
    one that is known here and down is named as such.
    """
    known = dict(names) | {node: name for _, heard in view.hearings for node, name in heard if node not in names}
    hears = {node: {one for one, _ in heard} for node, heard in view.hearings}
    hears[view.me.id] = {node.id for node in _live(view)}
    silent = {node.id for node in view.nodes if node.state is NodeState.DOWN}
    ring = set(view.mesh.plan.ring) if view.mesh.plan is not None else set()
    live = set().union(*hears.values()) - silent
    for one in sorted(hears.keys() & live):
        for other in sorted(live - {one}):
            both_told = other in hears
            if other in hears[one] or (both_told and (one in hears[other] or other < one)):
                continue
            text = f"{known[one]} and {known[other]} do not hear each other"
            text += "; the ring goes round that pair" * ({one, other} <= ring)
            yield Fact("deaf_pair", "--".join(sorted((one, other))), text)
