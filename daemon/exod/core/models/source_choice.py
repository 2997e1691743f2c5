"""From where one file of a model is fetched: from which node that has it, or from the hub.

Decides by what is known at the moment; asked anew for each file and after each try. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Final

HUB: Final = "hub"


def choose_source(
    etag: str,
    offers: Mapping[str, Set[str]],
    busy: Mapping[str, int],
    bad: Set[tuple[str, str]],
    may_ask_hub: bool,
) -> str | None:
    """A node, HUB, or None: wait. `offers`: for each node, best path first, the etags of the files that it has;
    `busy`: how many files come from it now; `bad`: (node, etag) of those that sent something else than they said.
    Of several nodes the least busy one is asked. The hub is asked only for what no node has.
    """
    having = [node for node, etags in offers.items() if etag in etags and (node, etag) not in bad]
    if having:
        return min(having, key=lambda node: busy.get(node, 0))
    return HUB if may_ask_hub else None
