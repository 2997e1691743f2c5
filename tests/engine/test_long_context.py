"""A context that outgrows `safe_context_tokens` while it is answered."""

from __future__ import annotations

from pathlib import Path

from exoengine.protocol import Abort, Aborted, Heartbeat, SyncSettings
from tests.engine.driver import Answer, Cluster, request
from tests.engine.models import LLAMA, undisturbed, write_model

NARROW = {
    **LLAMA, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 70_000,
}  # fmt: skip
"""As little work a token as a model can be: a context of thousands then takes seconds on one core."""

PROMPT = [7 * index % 250 for index in range(10_000)]
STEPS = 400
SAFE_BEYOND = 10_200


def test_beyond_the_safe_context_steps_are_safe_and_nothing_else_changes(trio: Cluster, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "narrow", NARROW)
    trio.load(folder, [1, 1], SyncSettings(safe_context_tokens=SAFE_BEYOND))
    trio.form()
    asked = request(PROMPT, STEPS)
    trio.begin(asked)
    rank = trio.ranks[0]
    fast = rank.expect(Heartbeat, where=lambda said: said.sync_mode == "fast" and said.kv_tokens > len(PROMPT))
    assert fast.kv_tokens <= SAFE_BEYOND + 1
    safe = rank.expect(Heartbeat, where=lambda said: said.sync_mode == "safe")
    assert safe.kv_tokens > SAFE_BEYOND
    assert str(SAFE_BEYOND) in safe.sync_reason
    assert safe.memory_bytes < 1.5 * fast.memory_bytes
    trio.ranks[1].send(Abort("the test cuts a link"))
    for one in trio.ranks[:2]:
        one.expect(Aborted)
    trio.form()
    for answer in trio.finish(asked.request_id):
        assert isinstance(answer, Answer)
        assert answer.tokens == undisturbed(folder, PROMPT, STEPS)
