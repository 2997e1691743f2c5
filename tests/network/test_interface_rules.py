"""Which addresses the mesh may use, and what a person is told about the others."""

from __future__ import annotations

import pytest

from exod.model import Kind, LocalAddress
from exod.network.interface_rules import InterfaceRules, SeenInterface, Verdict, judge, without_doubles
from exod.platform.system import Classification

CABLE = Classification(Kind.THUNDERBOLT, "hardware port “Thunderbolt Bridge”")
ETHERNET = Classification(Kind.ETHERNET, "hardware")
LOOPBACK = Classification(Kind.LOOPBACK, "the loopback device")
OTHER = Classification(Kind.OTHER, "a bridge without a hardware port")
VPN = Classification(Kind.VPN, "a tunnel device")

UP = (("10.0.0.2", 24),)


def verdict(
    name: str,
    found: Classification,
    rules: InterfaceRules | None = None,
    up: bool = True,
    addresses: tuple[tuple[str, int], ...] = UP,
    has_ipv6: bool = False,
) -> Verdict:
    seen = SeenInterface(name, up, addresses, has_ipv6=has_ipv6)
    return judge(seen, found, rules if rules is not None else InterfaceRules())


def usable(one: Verdict) -> list[str]:
    return [local.address for local in one.usable]


def test_an_interface_that_is_up_with_an_address_is_eligible_whatever_link_it_is() -> None:
    for found in (CABLE, ETHERNET, VPN):
        assert usable(verdict("en0", found)) == ["10.0.0.2"]
    assert verdict("en0", ETHERNET).usable == (LocalAddress("en0", Kind.ETHERNET, "10.0.0.2", 24),)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (verdict("en0", ETHERNET, up=False), "down"),
        (verdict("en0", ETHERNET, addresses=()), "it has no IPv4 address, and exod speaks IPv4 alone"),
        (verdict("en0", ETHERNET, addresses=(), has_ipv6=True), "IPv6 addresses only, and exod speaks IPv4 alone"),
        (verdict("en0", ETHERNET, addresses=(("169.254.3.4", 16),)), "no DHCP server"),
        (verdict("lo", LOOPBACK, addresses=(("127.0.0.1", 8),)), "only this host"),
        (verdict("docker0", OTHER), "no link to another host"),
        (verdict("en0", ETHERNET, InterfaceRules(exclude=("en*",))), "mesh.exclude names it (“en*”)"),
        (verdict("en0", ETHERNET, InterfaceRules(include=("bridge*",))), "mesh.include does not name it"),
        (verdict("en0", ETHERNET, InterfaceRules(include=("en0",), exclude=("en0",))), "mesh.exclude"),
    ],
)
def test_what_makes_an_interface_ineligible_is_said_in_words(one: Verdict, words: str) -> None:
    assert one.usable == ()
    assert words in one.why


def test_loopback_needs_its_name_in_include_and_no_glob_will_do() -> None:
    addresses = (("127.0.0.1", 8),)
    for include in (("*",), ("l*",), ("en0",)):
        assert verdict("lo", LOOPBACK, InterfaceRules(include=include), addresses=addresses).usable == ()
    chosen = verdict("lo", LOOPBACK, InterfaceRules(include=("lo",)), addresses=addresses)
    assert usable(chosen) == ["127.0.0.1"]


def test_a_container_bridge_is_used_where_the_config_asks_for_it() -> None:
    assert verdict("docker0", OTHER, InterfaceRules(include=("*",))).usable == ()
    assert usable(verdict("docker0", OTHER, InterfaceRules(include=("docker*",)))) == ["10.0.0.2"]
    assert usable(verdict("docker0", OTHER, InterfaceRules(kinds={"docker0": Kind.ETHERNET}))) == ["10.0.0.2"]


def test_a_self_assigned_address_is_good_enough_for_a_cable_until_a_lasting_one_is_there() -> None:
    self_assigned = ("169.254.3.4", 16)
    alone = verdict("bridge0", CABLE, addresses=(self_assigned,))
    assert usable(alone) == ["169.254.3.4"]
    assert "may change" in alone.why
    both = verdict("bridge0", CABLE, addresses=(self_assigned, ("192.168.4.21", 24)))
    assert usable(both) == ["192.168.4.21"]


def test_the_config_overrides_the_kind_by_name_before_globs() -> None:
    rules = InterfaceRules(kinds={"en*": Kind.WIFI, "en5": Kind.THUNDERBOLT})
    assert verdict("en5", ETHERNET, rules).kind is Kind.THUNDERBOLT
    assert verdict("en1", ETHERNET, rules).kind is Kind.WIFI
    assert verdict("eth0", ETHERNET, rules).kind is Kind.ETHERNET
    assert "mesh.kinds" in verdict("en5", ETHERNET, rules).kind_why


def test_every_address_of_an_interface_counts() -> None:
    assert usable(verdict("en0", ETHERNET, addresses=(("10.0.0.9", 24), ("10.0.0.2", 24)))) == [
        "10.0.0.2",
        "10.0.0.9",
    ]


def test_an_address_on_two_interfaces_belongs_to_the_better_kind() -> None:
    kept = without_doubles([verdict("en0", ETHERNET), verdict("bridge0", CABLE)])
    assert [usable(one) for one in kept] == [[], ["10.0.0.2"]]
    assert "address of bridge0 too" in kept[0].why
