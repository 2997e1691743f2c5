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
SOON_FAST = 100
"""A busy machine's pause may make a step or more of the first ones safe."""


def test_beyond_the_safe_context_steps_are_safe_and_nothing_else_changes(trio: Cluster, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "narrow", NARROW)
    trio.load(folder, [1, 1], SyncSettings(safe_context_tokens=SAFE_BEYOND))
    trio.form()
    asked = request(PROMPT, STEPS)
    trio.begin(asked)
    rank = trio.ranks[0]
    # A change of the mode is told with its step, however soon the next one comes.
    fast = rank.expect(Heartbeat, where=lambda said: said.sync_mode == "fast")
    assert len(PROMPT) < fast.kv_tokens <= len(PROMPT) + SOON_FAST
    safe = rank.expect(
        Heartbeat, where=lambda said: said.sync_mode == "safe" and str(SAFE_BEYOND) in said.sync_reason
    )
    assert safe.kv_tokens > SAFE_BEYOND
    assert safe.memory_bytes < 1.5 * fast.memory_bytes
    trio.ranks[1].send(Abort("the test cuts a link"))
    for one in trio.ranks[:2]:
        one.expect(Aborted)
    trio.form()
    for answer in trio.finish(asked.request_id):
        assert isinstance(answer, Answer)
        assert answer.tokens == undisturbed(folder, PROMPT, STEPS)
