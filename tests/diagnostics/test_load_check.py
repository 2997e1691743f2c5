"""A load is checked on every node before the model that runs is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exod.daemon_api.peer_reports import LoadCheckAnswer, LoadCheckMessage
from exod.diagnostics import load_check
from exod.diagnostics.load_check import LoadCheck, judge_answers
from exod.engine_service.model_search import look
from exod.errors import RequestError
from exod.model import ContextSettings, NodeId
from exoengine.embedded import model_folder
from exoengine.model_files.model_folder import ModelFolderError, ModelSummary, inspect
from tests.core.engine.engine_samples import A, B, a_plan

pytestmark = pytest.mark.anyio

NAMES = {A: "studio1", B: "studio2"}
WELL = LoadCheckAnswer(1, fingerprint="f", needs_mib=100, memory_mib=80)
GONE = LoadCheckAnswer(1, "no_folder", "/m does not exist", memory_mib=800)


def test_all_that_can_may_load() -> None:
    assert judge_answers("/m", NAMES, {A: WELL, B: WELL}) == ("", "")


def test_where_none_can_each_says_why() -> None:
    code, text = judge_answers("/m", NAMES, {A: GONE, B: GONE})
    assert code == "no_folder"
    assert text == "studio1: /m does not exist; studio2: /m does not exist"


def test_who_cannot_is_named_where_the_others_can() -> None:
    enough = LoadCheckAnswer(1, fingerprint="f", needs_mib=100, memory_mib=200)
    assert judge_answers("/m", NAMES, {A: enough, B: GONE}) == ("", "studio2: /m does not exist")


def test_without_who_cannot_the_others_have_too_little_memory() -> None:
    code, text = judge_answers("/m", NAMES, {A: WELL, B: GONE})
    assert code == "does_not_fit"
    assert "needs 100 MiB, and studio1 can give 80 MiB; studio2: /m does not exist" in text


def test_different_files_are_named_with_both_nodes() -> None:
    other = LoadCheckAnswer(1, fingerprint="g", needs_mib=100, memory_mib=80)
    code, text = judge_answers("/m", NAMES, {A: WELL, B: other})
    assert code == "files_differ"
    assert "studio1 and studio2 hold different files of /m" in text


def test_of_one_that_does_not_answer_its_rank_tells_the_rest() -> None:
    assert judge_answers("/m", NAMES, {A: WELL}) == ("", "")


class Pair:
    """Two nodes whose messages reach each other; `disks` says what each has of any model."""

    def __init__(self, disks: Mapping[NodeId, ModelSummary | ModelFolderError | None]) -> None:
        context = ContextSettings()
        self.serves = True
        cards: list[Any] = [
            SimpleNamespace(id=node, name=NAMES[node], engine=True, context=context, memory_mib=1000)
            for node in (A, B)
        ]
        self.checks = {
            card.id: LoadCheck(
                SimpleNamespace(send=lambda peer, message, me=card.id: self.send(me, peer, message)),
                lambda model, me=card.id: self.look(disks[me]),  # type: ignore[misc]
                lambda me=card: [me, *(one for one in cards if one is not me)],
                lambda: a_plan(A, B),
                lambda: self.serves,
            )
            for card in cards
        }

    def send(self, sender: NodeId, peer: NodeId, message: LoadCheckMessage) -> None:
        asyncio.get_running_loop().call_soon(self.checks[peer].handle, sender, message)

    async def look(self, disk: ModelSummary | ModelFolderError | None) -> ModelSummary | None:
        if isinstance(disk, ModelFolderError):
            raise disk
        return disk

    async def ask(self) -> str:
        serving = asyncio.create_task(self.checks[B].serve())
        try:
            return await self.checks[A].run("/m")
        finally:
            serving.cancel()


SUMMARY = inspect(model_folder("embedded:count"))


async def test_the_other_node_is_asked_and_the_refusal_says_that_the_model_goes_on() -> None:
    missing = ModelFolderError("no_folder", "the model folder /m does not exist")
    assert await Pair({A: SUMMARY, B: SUMMARY}).ask() == ""
    assert await Pair({A: SUMMARY, B: missing}).ask() == f"studio2: {missing}"
    assert await Pair({A: None, B: None}).ask() == "", "a repository is fetched first"
    with pytest.raises(RequestError) as caught:
        await Pair({A: missing, B: missing}).ask()
    assert caught.value.code == "no_folder"
    assert "the model that runs goes on" in caught.value.text
    pair = Pair({A: missing, B: missing})
    pair.serves = False
    with pytest.raises(RequestError) as caught:
        await pair.ask()
    assert "goes on" not in caught.value.text, "no model runs"


async def test_a_node_that_knows_no_such_question_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_check, "ANSWER_DEADLINE_S", 0.05)
    pair = Pair({A: SUMMARY, B: SUMMARY})
    assert await pair.checks[A].run("/m") == ""


async def test_an_architecture_that_nobody_knows_is_found_before_the_load(tmp_path: Path) -> None:
    for file in model_folder("embedded:count").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    async def local(model: str) -> Path:
        return Path(model)

    assert await look(str(tmp_path), local) is not None
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"quux"'))
    with pytest.raises(ModelFolderError, match="no architecture 'quux'"):
        await look(str(tmp_path), local)
