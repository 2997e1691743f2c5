"""A wrong route has one cure, whichever report names it."""

from __future__ import annotations

from exod.wrong_route import route_cure


def test_a_mac_gets_a_subnet_of_its_own_and_never_a_route() -> None:
    command = route_cure("darwin", "bridge0", "192.168.4.21", "192.168.4.22")
    assert command.startswith("give bridge0 a subnet of its own")
    assert 'sudo networksetup -setmanual "Thunderbolt Bridge" 10.254.0.1 255.255.255.252;' in command
    assert "route" not in command


def test_linux_gets_a_route_that_replaces_a_wrong_one() -> None:
    command = route_cure("linux", "bridge0", "192.168.4.21", "192.168.4.22")
    assert command == "sudo ip route replace 192.168.4.22/32 dev bridge0 src 192.168.4.21"
