"""Which addresses of peers are dialled, whatever multicast DNS says."""

from __future__ import annotations

from exod.daemon_api.discovery_state import PeerFound, PeerVanished
from exod.model import Kind, LocalAddress, NodeId
from exod.peers.contacts import MAX_PEER_ADDRESSES, Contacts

ETHERNET = LocalAddress("en0", Kind.ETHERNET, "10.0.0.2", 24)
CABLE = LocalAddress("bridge0", Kind.THUNDERBOLT, "192.168.4.21", 24)
PORT = 52410


class Dialled:
    """Stands for the control plane."""

    def __init__(self) -> None:
        self.places: set[tuple[str, int]] = set()
        self.rumours: set[tuple[str, int]] = set()

    def contact(self, address: str, port: int, name: str, *, rumour: bool = False) -> None:
        self.places.add((address, port))
        if rumour:
            self.rumours.add((address, port))

    def forget_contact(self, address: str, port: int) -> None:
        self.places.discard((address, port))


def found(number: int, *addresses: str, port: int = PORT) -> PeerFound:
    return PeerFound(NodeId(f"{number:016x}"), f"node{number}", addresses, port, 1)


def contacts(*own: LocalAddress) -> tuple[Contacts, Dialled]:
    dialled = Dialled()
    made = Contacts(dialled, lambda: None)
    made.follow(own)
    return made, dialled


def test_strangers_do_not_choose_what_is_dialled_outside_of_ones_own_subnets() -> None:
    made, dialled = contacts(ETHERNET)
    made.discovered(found(1, "10.0.0.7", "127.0.0.1", "8.8.8.8", "192.168.4.22", "10.0.1.7"))
    assert dialled.places == dialled.rumours == {("10.0.0.7", PORT)}
    made.discovered(found(2, *(f"10.0.0.{number}" for number in range(10, 250))))
    assert len(dialled.places) == 1 + MAX_PEER_ADDRESSES


def test_a_peer_is_dialled_once_this_host_is_in_its_subnet_and_while_it_is() -> None:
    made, dialled = contacts(ETHERNET)
    made.discovered(found(1, "192.168.4.22"))
    assert dialled.places == set()
    made.follow((ETHERNET, CABLE))
    assert dialled.places == {("192.168.4.22", PORT)}
    made.follow((ETHERNET,))
    assert dialled.places == set()


def test_what_a_peer_does_not_say_any_more_is_forgotten() -> None:
    made, dialled = contacts(ETHERNET)
    made.discovered(found(1, "10.0.0.7", "10.0.0.8"))
    made.discovered(found(1, "10.0.0.8", port=1))
    assert dialled.places == {("10.0.0.8", 1)}
    made.discovered(PeerVanished(NodeId(f"{1:016x}")))
    assert dialled.places == set()
