"""An answer that follows a schema is the same after its last rank, which masks it, was replaced in its midst."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from exoengine.protocol import Aborted, Begin, GenerationRequest, Grammar, Loaded, TokenOut
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import EOS, LLAMA, write_model

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "pattern": "^[a-z]{60}$"}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, 2) as made:
        yield made


def asked() -> GenerationRequest:
    plain = request("Write.", 200, temperature=1.0, seed=4)
    return msgspec.structs.replace(plain, grammar=Grammar("json_schema", json.dumps(SCHEMA)))


def test_a_replaced_rank_masks_as_the_one_before(pair: Cluster, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", {**LLAMA, "eos_token_id": EOS})
    assert all(isinstance(said, Loaded) for said in pair.load(folder, [2, 3]))
    pair.form()
    whole = pair.generate(asked())
    text = "".join(out.text for out in whole.outs) + whole.finished.text
    assert len(json.loads(text)["a"]) == 60
    assert whole.finished.reason == "stop"

    begin = pair.begin(asked())
    pair.ranks[0].expect(
        TokenOut, where=lambda said: said.request_id == begin.request.request_id and said.index >= 20
    )
    pair.ranks[1].kill()
    pair.ranks[0].expect(Aborted)
    pair.ranks[1].close()
    pair.ranks[1] = pair.start()
    pair.ranks[1].send(pair.loads[1])
    pair.ranks[1].expect(Loaded)
    pair.ranks[1].send(Begin(begin.order, begin.request, tuple(whole.tokens[:15])))
    pair.form()
    for answer in pair.finish(begin.request.request_id):
        assert isinstance(answer, Answer)
        assert answer.tokens[-40:] == whole.tokens[-40:]
        assert len(answer.outs) in (len(whole.tokens), len(whole.tokens) - 15)
