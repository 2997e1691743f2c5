"""Which of this host's addresses the mesh may use, and why not the others. Pure.

The kind comes from the platform unless the config overrides it; a kind makes an interface ineligible only where it
leads nowhere (loopback, containers). How good an interface is, is measured, never decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from exod.model import KIND_PREFERENCE, Kind, LocalAddress
from exod.platform.names import is_link_local, is_loopback
from exod.platform.system import Classification


class SeenInterface(msgspec.Struct, frozen=True):
    """An interface as the system shows it now."""

    name: str
    up: bool
    """Up and running: with a carrier, where the system knows."""
    addresses: tuple[tuple[str, int], ...]
    """IPv4 (address, prefix length)."""
    index: int = 0
    """The kernel's number: an interface that was removed and added again under its name has another."""
    has_ipv6: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """An interface, judged. `why` is for people; `usable` is empty where it is not eligible."""

    name: str
    kind: Kind
    kind_why: str
    up: bool
    addresses: tuple[tuple[str, int], ...]
    usable: tuple[LocalAddress, ...]
    why: str


class InterfaceRules(msgspec.Struct, frozen=True):
    """`[mesh] include`, `exclude` and `kinds`: names or globs. An exact name in `kinds` comes before globs."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kinds: Mapping[str, Kind] = {}

    def kind(self, name: str, found: Classification) -> Classification:
        if name in self.kinds:
            return Classification(self.kinds[name], "mesh.kinds says so")
        pattern = _first_match(name, tuple(self.kinds))
        if pattern is not None:
            return Classification(self.kinds[pattern], f"mesh.kinds says so (“{pattern}”)")
        return found

    def is_chosen_for(self, name: str, kind: Kind) -> bool:
        """Did the config choose this interface of a kind that is left out by itself? A bare `*` chooses none."""
        if kind is Kind.LOOPBACK:
            return name in self.include
        return _first_match(name, tuple(pattern for pattern in self.include if pattern != "*")) is not None


def judge(seen: SeenInterface, found: Classification, rules: InterfaceRules) -> Verdict:
    """One interface by itself: the config first, then the kind, then its state and its addresses."""
    classified = rules.kind(seen.name, found)
    usable, why = _usable(seen, classified, rules)
    return Verdict(
        name=seen.name,
        kind=classified.kind,
        kind_why=classified.why,
        up=seen.up,
        addresses=seen.addresses,
        usable=tuple(
            LocalAddress(seen.name, classified.kind, address, prefix) for address, prefix in sorted(usable)
        ),
        why=why,
    )


def _usable(
    seen: SeenInterface, classified: Classification, rules: InterfaceRules
) -> tuple[Sequence[tuple[str, int]], str]:
    kind = classified.kind
    excluded = _first_match(seen.name, rules.exclude)
    if excluded is not None:
        return (), f"mesh.exclude names it (“{excluded}”)"
    if rules.include and _first_match(seen.name, rules.include) is None:
        return (), "mesh.include does not name it"
    if kind is Kind.LOOPBACK and not rules.is_chosen_for(seen.name, kind):
        return (), f'it reaches only this host; mesh.include = ["{seen.name}"] would use it for tests'
    if kind is Kind.OTHER and not rules.is_chosen_for(seen.name, kind):
        return (), f"it is no link to another host ({classified.why}); name it in mesh.include to use it"
    if not seen.up:
        return (), "it is down, or has no carrier"
    if not seen.addresses:
        has = "IPv6 addresses only" if seen.has_ipv6 else "no IPv4 address"
        return (), f"it has {has}, and exod speaks IPv4 alone"
    return _usable_addresses(seen, kind)


def _usable_addresses(seen: SeenInterface, kind: Kind) -> tuple[Sequence[tuple[str, int]], str]:
    reaching = [entry for entry in seen.addresses if kind is Kind.LOOPBACK or not is_loopback(entry[0])]
    lasting = [entry for entry in reaching if not is_link_local(entry[0])]
    if lasting:
        return lasting, f"up, with {_listed(lasting)}"
    if reaching and kind is Kind.THUNDERBOLT:
        return reaching, f"up, with the self-assigned {_listed(reaching)}, which may change at any time"
    return (), "it has only a self-assigned address (169.254…): no DHCP server answered on it"


def without_doubles(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """An address that two interfaces carry names no path: the one of the better kind keeps it."""
    holder: dict[str, str] = {}
    for verdict in sorted(verdicts, key=lambda one: (KIND_PREFERENCE[one.kind], one.name)):
        for local in verdict.usable:
            holder.setdefault(local.address, verdict.name)
    kept: list[Verdict] = []
    for verdict in verdicts:
        own = tuple(local for local in verdict.usable if holder[local.address] == verdict.name)
        if own == verdict.usable:
            kept.append(verdict)
            continue
        other = next(local for local in verdict.usable if local not in own)
        why = f"{other.address} is an address of {holder[other.address]} too, which keeps it"
        kept.append(msgspec.structs.replace(verdict, usable=own, why=why))
    return tuple(kept)


def _listed(entries: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{address}/{prefix}" for address, prefix in entries)


def _first_match(name: str, patterns: tuple[str, ...]) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
