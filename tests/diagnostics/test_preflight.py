"""The checks whose failure the lab cannot bring about: a wrong route, too little memory, a path nobody measured."""

from __future__ import annotations

import asyncio
import types
from typing import Any

import msgspec
import pytest

from exod.core.engine.engine_messages import RankPhase
from exod.daemon_api.peer_reports import TransferProbe, TransferReply
from exod.daemon_api.shapes import PreflightCheck
from exod.diagnostics import preflight as module
from exod.diagnostics.preflight import Preflight
from exod.model import ContextSettings, NodeId
from exod.platform.this_host import current
from tests.core.engine.engine_samples import A, B, a_plan, address, sizes

PLAN = a_plan(A, B)
GIB = 2**30


def engine(**changes: Any) -> Any:
    """What preflight reads of the engine's core: a plan of two, nothing loaded yet, ten layers of 1 GiB."""
    facts = types.SimpleNamespace(sizes=sizes(20, layer_bytes=GIB))
    rank = types.SimpleNamespace(
        phase=RankPhase.LOADING,
        loaded=None,
        worker=types.SimpleNamespace(hello=None),
        model=types.SimpleNamespace(facts=facts),
        span=lambda: (0, 10),
    )
    told = {"plan": PLAN, "rank": rank, "ranks": list, "trouble": lambda: "rank 1 did not answer"}
    return types.SimpleNamespace(**(told | changes))


def a_card(node: NodeId, name: str, bits: int = 0) -> Any:
    return types.SimpleNamespace(id=node, name=name, context=ContextSettings(kv_bits=bits))


def a_preflight(*, leaves_from: str | None = address(A), paths: tuple[Any, ...] = (), **changes: Any) -> Preflight:
    link = types.SimpleNamespace(peer=B, paths=paths)
    core: Any = types.SimpleNamespace(
        view=lambda _: types.SimpleNamespace(links=(link,)), card=a_card(A, "studio1"), links={}
    )
    control: Any = types.SimpleNamespace(connection_on=lambda *_: None, send=lambda *_: False)
    return Preflight(A, control, engine(**changes), core, 5.0, lambda _: leaves_from, current())


def checks(**given: Any) -> tuple[PreflightCheck, ...]:
    """Of this node alone."""
    return asyncio.run(a_preflight(**given).own_checks())


def failed(found: tuple[PreflightCheck, ...], name: str) -> PreflightCheck:
    (check,) = [check for check in found if check.name == name]
    assert not check.ok
    return check


def test_a_ring_that_would_leave_from_another_address_is_refused_with_the_command_that_mends_it() -> None:
    check = failed(checks(leaves_from="10.9.9.9"), "route")
    assert check.figure == "10.9.9.9"
    assert "would not use" in check.text
    assert address(B) in check.cure, "the command names the address to route"


def test_a_peer_without_any_route_is_refused() -> None:
    assert failed(checks(leaves_from=None), "route").figure == "no route"


def test_a_path_that_nobody_measured_is_refused() -> None:
    assert failed(checks(), "rtt").figure == "not measured"


def test_a_path_without_a_connection_is_refused() -> None:
    check = failed(checks(), "transfer")
    assert "TCP may be blocked" in check.text
    assert "firewall" in check.cure


class Moving:
    """A connection whose other end acknowledges so many pieces."""

    def __init__(self, pieces: int) -> None:
        self.left, self.aborted = pieces, False
        self.sizes: list[int] = []
        self.preflight: Preflight | None = None

    def send_message(self, message: TransferProbe) -> bool:
        self.sizes.append(len(message.payload))
        if self.left > 0 and self.preflight is not None:
            self.left -= 1
            self.preflight.handle(B, TransferReply(message.serial, len(message.payload)))
        return True

    def abort(self) -> None:
        self.aborted = True


def transfer_over(connection: Moving) -> PreflightCheck:
    preflight = a_preflight()
    preflight._control = types.SimpleNamespace(connection_on=lambda *_: connection, send=lambda *_: False)  # type: ignore[assignment]
    connection.preflight = preflight
    (check,) = [one for one in asyncio.run(preflight.own_checks()) if one.name == "transfer"]
    return check


def test_four_mebibytes_go_over_each_edge_in_pieces() -> None:
    connection = Moving(pieces=100)
    check = transfer_over(connection)
    assert check.ok
    assert sum(connection.sizes) == 4 << 20
    assert set(connection.sizes) == {module.PIECE_BYTES}
    assert check.text.startswith("4096 KiB")


def test_a_slow_path_ends_the_transfer_with_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRANSFER_S", 1e-9)
    slow = Moving(pieces=100)
    check = transfer_over(slow)
    assert check.ok
    assert 0 < sum(slow.sizes) < 4 << 20
    assert "MB/s" in check.figure


def test_a_path_that_stops_in_the_midst_is_refused_and_its_connection_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TRANSFER_DEADLINE_S", 0.05)
    stops = Moving(pieces=2)
    check = transfer_over(stops)
    assert (check.ok, check.figure) == (False, "timed out")
    assert len(stops.sizes) == 3
    assert stops.aborted


def test_what_the_ring_met_on_an_edge_is_a_check_of_its_own() -> None:
    check = failed(checks(), "ring")
    assert (check.figure, check.text) == ("not formed", "rank 1 did not answer")
    assert "TCP port" in check.cure
    formed = engine()
    formed.rank.phase = RankPhase.FORMED
    (passed,) = [one for one in checks(rank=formed.rank) if one.name == "ring"]
    assert passed.ok
    assert str(PLAN.edges[0].target_port) in passed.text
    unfit = types.SimpleNamespace(
        ring=types.SimpleNamespace(unfit=True, cause="it took bytes that nobody acknowledged")
    )
    preflight = a_preflight(rank=formed.rank)
    link = types.SimpleNamespace(paths={edge.path: unfit for edge in PLAN.edges}, peer=a_card(B, "studio2"))
    preflight._core = types.SimpleNamespace(  # type: ignore[assignment]
        view=preflight._core.view, card=preflight._core.card, links={B: link}
    )
    check = failed(asyncio.run(preflight.own_checks()), "ring")
    assert check.figure == "not fit"
    assert "nobody acknowledged" in check.text


def test_a_share_that_does_not_fit_into_free_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    free = types.SimpleNamespace(available=8 * GIB)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: free)
    check = failed(checks(), "memory")
    assert check.figure == "8.0 GiB free"
    assert "layers 0 to 9 need 10.00 GiB" in check.text
    assert "fewer layers" in check.cure


def test_a_share_that_fits_into_free_memory_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=12 * GIB))
    (check,) = [check for check in checks() if check.name == "memory"]
    assert check.ok


def test_a_rank_of_a_tensor_group_needs_a_part_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=12 * GIB))
    told = engine(plan=msgspec.structs.replace(PLAN, parallel="tensor"))
    told.rank.model.facts.sizes = msgspec.structs.replace(sizes(20, layer_bytes=GIB), can_shard=True, heads=(8,))
    told.rank.span = lambda: (0, 20)
    preflight = a_preflight(plan=told.plan, rank=told.rank)
    (check,) = [check for check in asyncio.run(preflight.own_checks()) if check.name == "memory"]
    assert check.ok
    assert "a part of 2 of layers 0 to 19 needs 10.00 GiB" in check.text


@pytest.mark.parametrize(
    ("recommended", "ok", "said"), [(12, True, "it is tried, and may be slow"), (9, False, "need")]
)
def test_what_mlx_recommends_decides_whether_a_share_fits(
    monkeypatch: pytest.MonkeyPatch, recommended: int, ok: bool, said: str
) -> None:
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=8 * GIB))
    told = engine()
    told.rank.worker.hello = types.SimpleNamespace(recommended_bytes=recommended * GIB)
    preflight = a_preflight(rank=told.rank)
    (check,) = [check for check in asyncio.run(preflight.own_checks()) if check.name == "memory"]
    assert check.ok is ok
    assert said in check.text
    assert check.figure == f"{recommended}.0 GiB for a GPU, 8.0 GiB free"


def test_a_node_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_DEADLINE_S", 0.01)
    check = failed(asyncio.run(a_preflight().run()).checks, "answer")
    assert check.subject == B


def test_without_a_plan_the_reason_is_the_plan() -> None:
    report = asyncio.run(a_preflight(plan=None).run())
    assert [check.name for check in report.checks] == ["plan"]
    assert not report.ok


def test_a_node_whose_context_is_configured_otherwise_is_named() -> None:
    status = types.SimpleNamespace(phase=RankPhase.LOADED, versions="1", fingerprint="f")
    preflight = a_preflight(ranks=lambda: [status, status])
    for bits, ok in ((0, True), (8, False)):
        peer: Any = types.SimpleNamespace(peer=a_card(B, "studio2", bits))
        preflight._core.links[B] = peer
        found = next(check for check in preflight._common_checks() if check.name == "context")
        assert found.ok is ok
        assert found.figure == "as long as the model allows, KV cache not quantised"
        assert ("studio2" in found.text) is not ok
        assert ("kv_group_size alike" in found.cure) is not ok
