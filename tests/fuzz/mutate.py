"""From a good input to a bad one: what disks, wires and people who mean harm do to bytes. Seeded, so that each
input can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

ODD: Final = (
    b"\x00",
    b"\xff",
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\xc1",
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\x7f\xff\xff\xff",
    b"\xcf" + b"\xff" * 8,
    b"\x91" * 300,
    b"[" * 300,
    b'{"a":' * 300,
    b"]" * 50,
    b'"',
    b"\\",
    b"\\ud800",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"-1e-999",
    b"18446744073709551616",
    b"9" * 400,
    b"NaN",
    b"\x1b]0;x\x07",
    b"\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"../../etc/passwd",
    b"%00",
    b"\xe2\x80\xae",
)

LONGEST: Final = 64 * 1024


def mutated(seeds: Sequence[bytes], random: Random) -> bytes:
    """One of `seeds`, changed in one to six places; now and then two of them in one, or nothing but noise."""
    if random.random() < 0.02:
        return random.randbytes(random.randrange(200))
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, 6)):
        at = random.randint(0, len(data))
        match random.randrange(8):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << random.randrange(8)
            case 1:
                data[at:at] = random.choice(ODD)
            case 2:
                del data[at : at + random.choice((1, 2, 4, 8, 64))]
            case 3:
                data[at : at + random.choice((1, 2, 4, 8))] = random.choice(ODD)
            case 4:
                data = data[:at]
            case 5:
                other = random.choice(seeds)
                data[at:] = other[random.randint(0, len(other)) :]
            case 6:
                piece = data[at : at + random.choice((1, 8, 32))]
                data[at:at] = piece * random.choice((1, 2, 50))
            case _:
                data[at:at] = random.randbytes(random.choice((1, 2, 8)))
    return bytes(data[:LONGEST])
