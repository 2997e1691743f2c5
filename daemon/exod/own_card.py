"""This node's card as the configuration and the platform give it, before any interface was looked at.

Decides nothing: addresses, routes and the memory for a model follow once they are known.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from exod import VERSION
from exod.config.settings import Config
from exod.identity import Identity
from exod.model import ContextSettings, NodeCard, NodeId, ParallelChoice
from exod.platform.system import Platform
from exoengine.model_files.memory_fit import ModelSizes, SpanTable
from exoengine.protocol import RDMA_STAND_IN, SyncSettings


def own_card(config: Config, identity: Identity, platform: Platform) -> NodeCard:
    engine = config.engine
    return NodeCard(
        id=identity.id,
        name=config.node.name,
        incarnation=identity.incarnation,
        version=VERSION,
        mesh_port=config.mesh.port,
        ring_port=engine.ring_port,
        api_port=config.api.port,
        addresses=(),
        engine=engine.enabled,
        memory_mib=platform.memory_mib(),
        model=_model_name(engine.model, config.source),
        split=engine.split,
        parallel=engine.parallel,
        nodes=engine.nodes,
        context=ContextSettings(engine.max_context, engine.kv_bits, engine.kv_group_size),
    )


def with_sizes(card: NodeCard, model: str, sizes: ModelSizes) -> NodeCard:
    """The card of a node that knows now what its model needs."""
    context = card.context
    table = SpanTable(sizes, context.max_tokens, context.kv_bits, context.kv_group_size)
    found_mib = 1 + (table.total_bytes(0, sizes.total_layers) >> 20)
    card = msgspec.structs.replace(card, found_model=model, found_mib=found_mib)
    if card.nodes != "fewest" or model != card.model:
        return card  # `model_mib` can cost a plan
    return msgspec.structs.replace(card, model_mib=found_mib)


def worker_environment(platform: Platform, config: Config) -> dict[str, str]:
    """What a worker's process has beside this one's environment."""
    plays = {RDMA_STAND_IN: "1"} if config.debug.plays_rdma else {}
    return platform.worker_environment() | plays


def sync_settings(config: Config) -> SyncSettings:
    """How this node's rank evaluates its steps."""
    engine = config.engine
    wanted = {"sync": engine.sync, "seal": config.mesh.seal}
    limits = {"safe_context_tokens": engine.safe_context, "watchdog_s": engine.watchdog_s}
    return msgspec.convert(wanted | limits, SyncSettings)


def reached_at(card: NodeCard) -> tuple[tuple[str, ...], int]:
    """Where others reach this node's daemon: addresses and port. A node without a network reaches itself."""
    addresses = tuple(one.address for one in card.addresses)
    return addresses or ("127.0.0.1",), card.mesh_port


def with_choice(card: NodeCard, way: str, model: str, ranks: tuple[NodeId, ...]) -> NodeCard:
    """The card of the node that chose how a model is run: the next plan, which it makes, follows it."""
    number = 1 + (card.choice.number if card.choice is not None else 0)
    return msgspec.structs.replace(card, choice=ParallelChoice(number, way, model, ranks))


def with_newer_choice(card: NodeCard, other: NodeCard) -> NodeCard:
    """The card of a node that keeps what another one chose: it may coordinate the next plan."""
    if other.choice is None or (card.choice is not None and card.choice >= other.choice):
        return card
    return msgspec.structs.replace(card, choice=other.choice)


def _model_name(model: str, source: Path | None) -> str:
    """A folder is named by its whole path: relative ones are meant from where the configuration lies."""
    if model.startswith(("./", "../", "~")):
        base = source.parent if source is not None else Path.cwd()
        return str((base / Path(model).expanduser()).resolve())
    return model
