"""zeroconf's instance with a pace: no record is multicast on an interface more than once a second (RFC 6762, 6).

It decides when, never what: of a record that comes too early the newest version waits until its second is over. A
goodbye and an announcement are versions of one record, so that an interface that flaps ends in the state it ended
in. Questions, answers to a single asker, and the goodbye of a daemon that ends pass as they are. Times are in
seconds on the loop's clock.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from zeroconf import Zeroconf
from zeroconf._dns import DNSRecord
from zeroconf._protocol.outgoing import DNSOutgoing
from zeroconf.const import _MDNS_PORT as MDNS_PORT

PACE_S: Final = 1.0

RESPONSE: Final = 0x8400
"""An authoritative response (RFC 6762, 18.2 and 18.4)."""

Sent = tuple[str, DNSRecord]
"""The interface's address, and a record as zeroconf compares it: without its time to live."""


class PacedZeroconf(Zeroconf):
    """As Zeroconf, on the event loop."""

    def __init__(self, **options: Any) -> None:
        self._sent_at: dict[Sent, float] = {}
        self._late: dict[Sent, DNSRecord] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.leaving = False
        """Set before the last goodbye, which must not wait: there is no second one."""
        super().__init__(**options)

    def async_send(
        self,
        out: DNSOutgoing,
        addr: str | None = None,
        port: int = MDNS_PORT,
        v6_flow_scope: tuple[()] | tuple[int, int] = (),
        transport: Any = None,
    ) -> None:
        """zeroconf calls it for everything that it sends."""
        if addr is not None or self.leaving or not out.is_response():
            super().async_send(out, addr, port, v6_flow_scope, transport)
            return
        for sender in [transport] if transport else list(self.engine.senders):
            due = self._due(sender, [record for record, _ in out.answers])
            if due:
                more = self._due(sender, out.additionals, wait=False)
                self._multicast(sender, due, more)

    def _due(self, sender: Any, records: list[DNSRecord], *, wait: bool = True) -> list[DNSRecord]:
        """Those whose second is over, now noted as sent; of the others the newest waits."""
        now = asyncio.get_running_loop().time()
        due = []
        for record in records:
            key = (str(sender.sock_name[0]), record)
            if now - self._sent_at.get(key, -PACE_S) >= PACE_S:
                self._late.pop(key, None)
                self._sent_at.pop(key, None)
                self._sent_at[key] = now
                due.append(record)
            elif wait:
                self._late.pop(key, None)  # dict keeps the key that came first: it has the other time to live
                self._late[key] = record
        if self._late and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PACE_S / 4, self._send_late)
        return due

    def _send_late(self) -> None:
        self._timer = None
        if self.done or self.leaving:
            return
        now = asyncio.get_running_loop().time()
        for key in [key for key, at in self._sent_at.items() if now - at >= PACE_S]:
            del self._sent_at[key]
        late, self._late = self._late, {}
        for sender in list(self.engine.senders):
            address = str(sender.sock_name[0])
            records = [record for (place, _), record in late.items() if place == address]
            if due := self._due(sender, records):
                self._multicast(sender, due, [])

    def _multicast(self, sender: Any, answers: list[DNSRecord], additionals: list[DNSRecord]) -> None:
        out = DNSOutgoing(RESPONSE)
        for record in answers:
            out.add_answer_at_time(record, 0)
        for record in additionals:
            out.add_additional_answer(record)
        super().async_send(out, transport=sender)
