"""Can the cluster host a model? Asked of every node before the model that runs is let go.

Each node looks at its own disk: files, architecture, size. The one that a person asked collects the answers. A
model is refused that no node can host, that does not fit into the memory of those which can, or of which they hold
different files. Where some cannot and the others can, the load goes on, and it is said who will be left out. A node
that does not answer, or whose version knows no such question, is taken as able: its rank tells the rest.

Never loads anything and never changes a plan. Sizes in MiB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

import structlog

from exod.daemon_api.peer_reports import LoadCheckAnswer, LoadCheckMessage, LoadCheckWish
from exod.errors import ExitCode, RequestError
from exod.model import MeshPlan, NodeCard, NodeId
from exod.plain_text import and_join
from exoengine.model_files.memory_fit import SpanTable
from exoengine.model_files.model_folder import ModelFolderError, ModelSummary

log = structlog.get_logger()

ANSWER_DEADLINE_S: Final = 10.0
"""A node reads the headers of some dozen files; a cold disk takes a second or two."""

MAX_WISHES: Final = 16
"""Loads that people command at once on other nodes: several, never many."""

Cards = Callable[[], Sequence[NodeCard]]
"""Those of the nodes that are known, this one's first."""

Look = Callable[[str], Awaitable[ModelSummary | None]]
"""What this node's disk says of a model; None where it is not here and may be fetched. Raises ModelFolderError."""


class Sends(Protocol):
    def send(self, peer: NodeId, message: LoadCheckMessage) -> object: ...


class LoadCheck:
    def __init__(
        self, control: Sends, look: Look, cards: Cards, plan: Callable[[], MeshPlan | None],
        serves: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`serves`: does a model answer now?"""
        self._control, self._look, self._cards, self._plan, self._serves = control, look, cards, plan, serves
        self._serial = 0
        self._asked: dict[int, asyncio.Future[LoadCheckAnswer]] = {}
        self._wishes: asyncio.Queue[tuple[NodeId, LoadCheckWish]] = asyncio.Queue(MAX_WISHES)

    async def serve(self) -> None:
        """Answers other nodes, side by side. Never returns."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                peer, wish = await self._wishes.get()
                tasks.create_task(self._answer(peer, wish), name=f"load check of {peer}")

    def handle(self, peer: NodeId, message: LoadCheckMessage) -> None:
        match message:
            case LoadCheckWish():
                try:
                    self._wishes.put_nowait((peer, message))
                except asyncio.QueueFull:
                    log.warning("load_check_dropped", peer=peer, waiting=MAX_WISHES)
            case LoadCheckAnswer(serial=serial):
                asked = self._asked.get(serial)
                if asked is not None and not asked.done():
                    asked.set_result(message)

    async def run(self, model: str) -> str:
        """Who will be left out and why; empty where nobody is. Raises RequestError where the cluster cannot host
        it: what runs goes on.
        """
        names = self._candidates() or {card.id: card.name for card in self._cards()[:1]}
        found = await asyncio.gather(*(self._ask(node, model) for node in names))
        answers = {node: answer for node, answer in zip(names, found, strict=True) if answer is not None}
        code, text = judge_answers(model, names, answers)
        if code:
            goes_on = "; the model that runs goes on" if self._serves() else ""
            raise RequestError(code, f"{text}{goes_on}", ExitCode.INTERNAL)
        return text

    def _candidates(self) -> dict[NodeId, str]:
        """The members that host ranks, by name. This one alone where no plan is agreed."""
        plan, cards = self._plan(), self._cards()
        members = {member.id for member in plan.members} if plan is not None else {cards[0].id}
        return {card.id: card.name for card in cards if card.id in members and card.engine}

    async def _ask(self, node: NodeId, model: str) -> LoadCheckAnswer | None:
        """None where it does not answer."""
        if node == self._cards()[0].id:
            return await self._own(0, model)
        self._serial += 1
        serial = self._serial
        asked: asyncio.Future[LoadCheckAnswer] = asyncio.get_running_loop().create_future()
        self._asked[serial] = asked
        try:
            self._control.send(node, LoadCheckWish(serial, model))
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                return await asked
        except TimeoutError:
            return None
        finally:
            del self._asked[serial]

    async def _answer(self, peer: NodeId, wish: LoadCheckWish) -> None:
        self._control.send(peer, await self._own(wish.serial, wish.model))

    async def _own(self, serial: int, model: str) -> LoadCheckAnswer:
        card = self._cards()[0]
        try:
            summary = await self._look(model)
        except ModelFolderError as error:
            return LoadCheckAnswer(serial, error.code, str(error), memory_mib=card.memory_mib)
        if summary is None:
            return LoadCheckAnswer(serial, memory_mib=card.memory_mib)
        context = card.context
        table = SpanTable(summary, context.max_tokens, context.kv_bits, context.kv_group_size)
        needs_mib = 1 + (table.total_bytes(0, summary.total_layers) >> 20)
        return LoadCheckAnswer(
            serial, fingerprint=summary.fingerprint, needs_mib=needs_mib, memory_mib=card.memory_mib
        )


def judge_answers(
    model: str, names: Mapping[NodeId, str], answers: Mapping[NodeId, LoadCheckAnswer]
) -> tuple[str, str]:
    """`names` are all that were asked. (code, text) of the refusal; ("", who will be left out) of a load that may
    go on. Both name each node with what it says.
    """
    refusing = {node: answer for node, answer in answers.items() if answer.code}
    said = "; ".join(f"{names[node]}: {answer.text}" for node, answer in refusing.items())
    if len(refusing) == len(names):
        return next(iter(refusing.values())).code, said if len(names) > 1 else next(iter(refusing.values())).text
    able = {node: answer for node, answer in answers.items() if node not in refusing}
    holders = {answer.fingerprint: names[node] for node, answer in able.items() if answer.fingerprint}
    if len(holders) > 1:
        text = (
            f"{and_join(sorted(holders.values()))} hold different files of {model}: copy one folder to the others"
        )
        return "files_differ", text
    needs_mib = max((answer.needs_mib for answer in able.values()), default=0)
    given_mib = sum(answer.memory_mib for answer in able.values())
    if len(able) + len(refusing) == len(names) and needs_mib > given_mib:
        who = and_join([names[node] for node in able])
        text = f"{model} does not fit: it needs {needs_mib} MiB, and {who} can give {given_mib} MiB"
        return "does_not_fit", f"{text}; {said}" if said else text
    return "", said
