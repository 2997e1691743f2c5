"""The datagram codec: what goes in comes out, what was touched does not, and nothing but WireError ever escapes."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exod.core.base.errors import IllegalMoveError, WireError
from exod.core.probe.datagram import (
    MAC_BYTES,
    MAX_DATAGRAM,
    MAX_PATHS,
    Datagram,
    PathReport,
    RouteVerdict,
    authentication_code,
    decode,
    encode,
)
from exod.model import NodeId, PathId, PathState, Selection

KEY = bytes(range(32))

addresses = st.builds(lambda raw: ".".join(str(part) for part in raw), st.binary(min_size=4, max_size=4))
paths = st.builds(lambda low, high: PathId(f"{low}-{high}"), addresses, addresses)
nodes = st.builds(lambda raw: NodeId(raw.hex()), st.binary(min_size=8, max_size=8))
counters = st.integers(1, 2**64 - 1)
reports = st.builds(
    PathReport,
    path=paths,
    state=st.sampled_from(PathState),
    route=st.sampled_from(RouteVerdict),
    loss_percent=st.integers(0, 100),
)
datagrams = st.builds(
    Datagram,
    sender=nodes,
    destination=nodes,
    sender_incarnation=counters,
    destination_incarnation=st.integers(0, 2**64 - 1),
    seq=counters,
    order=counters,
    source_address=addresses,
    target_address=addresses,
    interval_ms=st.integers(0, 65_535),
    echo_seq=st.integers(0, 2**64 - 1),
    hold_ns=st.integers(0, 2**64 - 1),
    epoch_number=st.integers(0, 2**64 - 1),
    plan_prefix=st.one_of(st.just(""), st.binary(min_size=8, max_size=8).filter(any).map(bytes.hex)),
    selection=st.none() | st.builds(Selection, counters, counters, counters, st.none() | paths),
    wish=st.none() | paths,
    reports=st.lists(reports, max_size=MAX_PATHS).map(tuple),
    goodbye=st.booleans(),
    urgent=st.booleans(),
)


def example(paths_count: int = 3) -> Datagram:
    return Datagram(
        sender=NodeId("00000000000000a1"),
        destination=NodeId("00000000000000b2"),
        sender_incarnation=1_700_000_000_001,
        destination_incarnation=1_700_000_000_002,
        seq=7,
        order=21,
        source_address="10.0.0.1",
        target_address="10.0.0.2",
        interval_ms=50,
        echo_seq=6,
        hold_ns=12_345_678,
        epoch_number=3,
        plan_prefix="00112233445566aa",
        selection=Selection(1_700_000_000_001, 1_700_000_000_002, 4, PathId("10.0.0.1-10.0.0.2")),
        reports=tuple(
            PathReport(PathId(f"10.0.{place}.1-10.0.{place}.2"), PathState.UP, RouteVerdict.RIGHT, 0)
            for place in range(paths_count)
        ),
    )


@given(datagrams)
def test_a_datagram_survives_the_wire(datagram: Datagram) -> None:
    data = encode(datagram, KEY)
    assert len(data) <= MAX_DATAGRAM
    assert decode(data, KEY) == datagram


def test_the_largest_datagram_is_far_below_the_limit() -> None:
    assert len(encode(example(MAX_PATHS), KEY)) < 400


@given(datagrams, st.data())
def test_one_changed_bit_is_refused(datagram: Datagram, data: st.DataObject) -> None:
    raw = bytearray(encode(datagram, KEY))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError) as caught:
        decode(bytes(raw), KEY)
    assert caught.value.code in ("malformed", "bad_mac")


@given(st.binary(max_size=1_400))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(WireError):
        decode(noise, KEY)


def refusal(raw: bytes) -> str | None:
    """Why these bytes are no datagram; None where they are one. Any error but a WireError is a failed test."""
    try:
        decode(raw, KEY)
    except WireError as error:
        return error.code
    return None


@given(st.binary(min_size=0, max_size=400))
def test_noise_under_a_right_mac_raises_nothing_but_wire_errors(noise: bytes) -> None:
    """A peer with the key and another program: its bytes are authentic nonsense."""
    body = bytes([1]) + noise
    assert refusal(body + authentication_code(body, KEY)) in (None, "malformed", "version")


@given(datagrams, st.data())
def test_authentic_mutations_decode_or_are_malformed(datagram: Datagram, data: st.DataObject) -> None:
    body = bytearray(encode(datagram, KEY)[:-MAC_BYTES])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(body) + authentication_code(bytes(body), KEY)
    code = refusal(raw)
    assert code in (None, "malformed", "version")
    if code is None:
        again = decode(raw, KEY)
        assert decode(encode(again, KEY), KEY) == again


def test_another_cluster_key_is_refused_as_such() -> None:
    with pytest.raises(WireError) as caught:
        decode(encode(example(), KEY), bytes(32))
    assert caught.value.code == "bad_mac"


def test_another_version_is_named() -> None:
    raw = b"\x02" + encode(example(), KEY)[1:]
    with pytest.raises(WireError, match="protocol version 2"):
        decode(raw, KEY)


def test_a_field_that_does_not_fit_is_our_own_bug() -> None:
    with pytest.raises(IllegalMoveError):
        encode(example(MAX_PATHS + 1), KEY)


@pytest.mark.slow
def test_a_million_mutated_datagrams_are_refused() -> None:
    assert fuzz(1_000_000, seed=1) == 0


def test_a_share_of_the_mutated_datagrams_is_refused() -> None:
    assert fuzz(30_000, seed=int(time.time()) // 86_400) == 0


def fuzz(count: int, seed: int) -> int:
    """Mutate, truncate, extend and splice real datagrams. Returns how many were accepted although changed."""
    rng = random.Random(seed)
    pool = [encode(example(paths), KEY) for paths in range(MAX_PATHS + 1)]
    originals = set(pool)
    accepted = 0
    for _ in range(count):
        raw = bytearray(rng.choice(pool))
        match rng.randrange(4):
            case 0:
                for _ in range(rng.randint(1, 8)):
                    raw[rng.randrange(len(raw))] = rng.randrange(256)
            case 1:
                del raw[rng.randrange(len(raw)) :]
            case 2:
                raw += rng.randbytes(rng.randint(1, 40))
            case 3:
                other = rng.choice(pool)
                cut = rng.randrange(min(len(raw), len(other)))
                raw[cut:] = other[cut:]
        data = bytes(raw)
        try:
            decode(data, KEY)
        except WireError:
            continue
        accepted += data not in originals
    return accepted
