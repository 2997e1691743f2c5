"""What is shown of models that are fetched: one line for each node and model. Decides nothing."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from exod.model import MAX_SHOWN, ModelFetch, NodeId
from exod.plain_text import printable


class DownloadLine(msgspec.Struct, frozen=True):
    """One node's download of the wished model, in bytes; `total_bytes` is 0 until the hub has answered."""

    node: NodeId
    done_bytes: int
    total_bytes: int


class ModelLine(msgspec.Struct, frozen=True):
    """What one node has of a model that people asked for, or that its rank looks for."""

    node: NodeId
    node_name: str
    model: str
    state: Literal["waiting", "fetching", "paused", "failed", "here"]
    done_bytes: int = 0
    total_bytes: int = 0
    """0 while it is not known what belongs to the model."""
    bytes_per_s: int = 0
    left_s: float | None = None
    sources: tuple[str, ...] = ()
    """Names of the nodes, and of the hub, that something came from."""
    code: str = ""
    text: str = ""
    """Why it failed, or why it waits."""


FetchState = Literal["waiting", "fetching", "paused", "failed", "here"]
_FETCH_STATES: Final[tuple[FetchState, ...]] = ("waiting", "fetching", "paused", "failed", "here")


def model_line(node: NodeId, name: str, fetch: ModelFetch) -> ModelLine:
    """As its node reported it. A state of a newer release shows as waiting."""
    state: FetchState = next((known for known in _FETCH_STATES if known == fetch.state), "waiting")
    return ModelLine(
        node, name, printable(fetch.model, MAX_SHOWN), state, fetch.done_bytes, fetch.total_bytes,
        fetch.bytes_per_s, fetch.left_s, tuple(printable(one, MAX_SHOWN) for one in fetch.sources[:16]),
        fetch.code, printable(fetch.text, MAX_SHOWN),
    )  # fmt: skip
