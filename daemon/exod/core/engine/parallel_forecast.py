"""How long a token and a prompt would take on one node, in a pipeline and in a tensor group: predicted, and chosen.

The theory. Decoding reads all weights that a token needs, so a rank's time goes with the bytes of its layers; what
a byte takes on a node its worker measures when it has loaded. A pipeline's token goes through all ranks, one after
the other, and over as many edges. A tensor group's ranks work at the same time, each on its part, and add up twice
a layer over the slowest edge. A prompt flows through a pipeline in chunks, so all stages work at once. Where the
ranks are tensor groups one after the other both hold.

Decides what `engine.parallel = "auto"` takes: the way that needs the least time for a usual request and fits; and
never when (engine_core.py). What is far from short (a long context, several requests at once) is not predicted.
Times in seconds. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from exod.core.engine.engine_messages import RankStatus
from exod.core.engine.layer_split import layer_spans, part_spans, shortage, span_table
from exod.core.engine.parallel_mode import group_obstacle, most_parts, obstacle
from exod.model import MeshPlan, NodeId
from exoengine.model_files.memory_fit import Fit, ModelSizes, SpanNeeds, gib, judge_fit
from exoengine.protocol import CHUNK_TOKENS, LARGE_BYTES, SMALL_BYTES

PROMPT_TOKENS: Final = 1024
ANSWER_TOKENS: Final = 256
"""A usual request: a question with some history, and half a page of answer."""

HIDDEN_VALUE_BYTES: Final = 2
"""Of what goes from rank to rank: nearly all models compute in 16 bits."""

FIRST_GAIN: Final = 1.1
"""So many times faster a tensor group must be than the pipeline that runs: predictions err by about as much, and
the layers are loaded again for it."""

LATER_GAIN: Final = 1.5
"""What was chosen once is changed only for this much: figures differ a little each time that they are measured."""

Way = Literal["alone", "pipeline", "tensor"]


class Forecast(msgspec.Struct, frozen=True):
    """One way of running the model on the plan's nodes."""

    way: Way
    token_s: float
    prefill_s: float
    """Of PROMPT_TOKENS tokens."""
    obstacle: str = ""
    """Why it cannot be, as text; empty where it can, as far as is known."""
    node: NodeId | None = None
    """The node, where one computes alone."""
    stages: int = 1
    """Of tensor groups, how many follow each other."""

    @property
    def request_s(self) -> float:
        return self.prefill_s + ANSWER_TOKENS * self.token_s


class _Speed(msgspec.Struct, frozen=True):
    """What a byte of weights takes on one node."""

    token_s: float
    chunk_s: float


def forecasts(plan: MeshPlan, sizes: ModelSizes, ranks: Sequence[RankStatus]) -> tuple[Forecast, ...]:
    """One node alone, the pipeline and the tensor group; nothing while a rank has not measured, or is alone."""
    if len(ranks) < 2 or len(ranks) != len(plan.ring):
        return ()
    speeds = [_speed(plan, sizes, rank) for rank in ranks]
    if not all(speed.token_s and speed.chunk_s for speed in speeds) or not all(one.edges.small_s for one in ranks):
        return ()
    return _alone(plan, sizes, speeds), _pipeline(plan, sizes, ranks, speeds), _tensor(plan, sizes, ranks, speeds)


def best(found: Sequence[Forecast]) -> Forecast | None:
    """Of the ways that can be: that with the shortest request."""
    return min((one for one in found if not one.obstacle), key=lambda one: one.request_s, default=None)


def choice(found: Sequence[Forecast], now: Way, chosen_before: bool) -> Way | None:
    """What `auto` changes to; None where what runs `now` is as good. One node alone is no choice between ways: how
    many nodes host the model is `engine.nodes`.
    """
    ways = {one.way: one for one in found}
    other: Way = "tensor" if now == "pipeline" else "pipeline"
    if other not in ways or ways[other].obstacle:
        return None
    gain = LATER_GAIN if chosen_before else FIRST_GAIN
    return other if ways[now].request_s > gain * ways[other].request_s else None


def in_words(found: Sequence[Forecast], now: Way, wished: str, to: Way | None = None) -> str:
    """Why the model runs as it does, for people; empty where nothing is predicted. `to` is what `auto` changes
    to, if it does.
    """
    ways = {one.way: one for one in found}
    if not ways:
        return ""
    here, alone = ways[now], ways["alone"]
    other = ways["tensor" if now == "pipeline" else "pipeline"]
    stages = ways["tensor"].stages
    group = "a tensor group" if stages == 1 else f"a pipeline of {stages} tensor groups"
    name = {"pipeline": "a pipeline", "tensor": group}
    if wished != "auto":
        why = f'engine.parallel = "{wished}"'
    elif other.obstacle:
        why = f"{name[other.way]} cannot be: {other.obstacle}"
    elif to == other.way:
        when = "once nothing is generated, if all ranks reach each other"
        why = f"{name[other.way]} is predicted to be faster, and is taken {when}"
    elif here.request_s > FIRST_GAIN * other.request_s:
        why = f"{name[other.way]} is predicted to be faster, but not by enough to load the layers again"
    else:
        faster = "faster than" if here.request_s <= other.request_s else "about as fast as"
        why = f"predicted to be {faster} {name[other.way]}"
    text = f"{name[now]}: {why}"
    gains = here.request_s > FIRST_GAIN * alone.request_s and here.token_s > FIRST_GAIN * alone.token_s
    if not alone.obstacle and gains:
        text += (
            f"; {alone.node} alone would be faster ({alone.token_s * 1e3:.1f} ms a token instead of"
            f" {here.token_s * 1e3:.1f} ms)"
        )
        text += ': set engine.nodes = "fewest" for one node' if wished == "auto" else ""
    return text


# --- what is predicted ----------------------------------------------------------------------------------------


def _speed(plan: MeshPlan, sizes: ModelSizes, rank: RankStatus) -> _Speed:
    if rank.layers is None:
        return _Speed(0.0, 0.0)
    held = max(1, span_table(plan.context, sizes, rank.parts).weight_bytes(*rank.layers))
    return _Speed(rank.costs.token_s / held, rank.costs.chunk_s / held)


def _alone(plan: MeshPlan, sizes: ModelSizes, speeds: Sequence[_Speed]) -> Forecast:
    """On the node that is the fastest of those that can hold all."""
    needs = span_table(plan.context, sizes).needs(0, sizes.total_layers)
    holding = [number for number, mib in enumerate(plan.memory_mib) if _fits(needs, mib)]
    number = min(holding or range(len(speeds)), key=lambda one: speeds[one].token_s)
    speed, chunks = speeds[number], PROMPT_TOKENS / CHUNK_TOKENS
    return Forecast(
        "alone",
        needs.weight_bytes * speed.token_s,
        needs.weight_bytes * speed.chunk_s * chunks,
        "" if holding else "no node can hold all of it",
        plan.ring[number],
    )


def _pipeline(plan: MeshPlan, sizes: ModelSizes, ranks: Sequence[RankStatus], speeds: Sequence[_Speed]) -> Forecast:
    pipeline = msgspec.structs.replace(plan, parallel="pipeline")
    try:
        spans, why_not = layer_spans(pipeline, sizes), shortage(pipeline, sizes)
    except ValueError as error:
        return Forecast("pipeline", 0.0, 0.0, str(error))
    table = span_table(pipeline.context, sizes)
    held = [table.weight_bytes(*span) for span in spans]
    hop_s, chunk_hop_s = _sum_s(sizes, ranks, 1), _sum_s(sizes, ranks, CHUNK_TOKENS)
    token_s = sum(size * speed.token_s + hop_s for size, speed in zip(held, speeds, strict=True))
    slowest_s = max(size * speed.chunk_s + chunk_hop_s for size, speed in zip(held, speeds, strict=True))
    return Forecast("pipeline", token_s, slowest_s * (PROMPT_TOKENS // CHUNK_TOKENS + len(ranks) - 1), why_not)


def _tensor(plan: MeshPlan, sizes: ModelSizes, ranks: Sequence[RankStatus], speeds: Sequence[_Speed]) -> Forecast:
    """One group of all ranks, or a pipeline of such groups."""
    parts = most_parts(plan, sizes) or len(ranks)
    # A pipeline's plan names no edges across the ring: whether there are any, the plan that follows a choice sees.
    why_not = obstacle(plan, sizes) if plan.parallel == "tensor" else group_obstacle(plan, sizes)
    try:
        spans = part_spans(plan, sizes, parts)
    except ValueError as error:
        return Forecast("tensor", 0.0, 0.0, why_not or str(error))
    table = span_table(plan.context, sizes, parts)
    for node, span, mib in zip(plan.ring, spans, plan.memory_mib, strict=True):
        if not _fits(needs := table.needs(*span), mib):
            why_not = why_not or f"{needs.text} and {node} can give {gib(mib << 20)}"
    stages = range(0, len(ranks), parts)
    hop_s, chunk_hop_s = (_sum_s(sizes, ranks, tokens) * (len(stages) > 1) for tokens in (1, CHUNK_TOKENS))
    # Large sums go by reduce-scatter and all-gather: of n ranks each sends 2 (n - 1) / n of the message.
    sum_s, chunk_sum_s = _sum_s(sizes, ranks, 1), _sum_s(sizes, ranks, CHUNK_TOKENS) * 2 * (parts - 1) / parts
    token_s, slowest_s = 0.0, 0.0
    for first in stages:
        held, sums = table.weight_bytes(*spans[first]), 2 * (spans[first][1] - spans[first][0])
        members = speeds[first : first + parts]
        token_s += held * max(one.token_s for one in members) + sums * sum_s + hop_s
        chunk_s = held * max(one.chunk_s for one in members) + sums * chunk_sum_s + chunk_hop_s
        slowest_s = max(slowest_s, chunk_s)
    prefill_s = slowest_s * (PROMPT_TOKENS // CHUNK_TOKENS + len(stages) - 1)
    return Forecast("tensor", token_s, prefill_s, why_not, stages=len(stages))


def _fits(needs: SpanNeeds, memory_mib: int) -> bool:
    return judge_fit(needs.total_bytes, memory_mib << 20) is not Fit.TOO_SMALL


def _sum_s(sizes: ModelSizes, ranks: Sequence[RankStatus], tokens: int) -> float:
    """What a message of so many tokens' hidden states takes over the slowest edge: a line through both sizes that
    were measured. One hop of a pipeline is one message as well.
    """
    size = tokens * sizes.hidden_size * HIDDEN_VALUE_BYTES
    small_s = max(rank.edges.small_s for rank in ranks)
    large_s = max(small_s, *(rank.edges.large_s for rank in ranks))
    return small_s + max(0, size - SMALL_BYTES) * (large_s - small_s) / (LARGE_BYTES - SMALL_BYTES)
