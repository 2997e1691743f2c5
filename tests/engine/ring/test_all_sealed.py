"""With `mesh.seal = "all"` on one node the whole ring's steps are safe, and its answers are what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest

from exoengine.protocol import Heartbeat, Loaded, SyncSettings
from exoengine.ring.group import ALL_SEALED
from tests.engine.driver import cluster, request
from tests.engine.models import LLAMA, undisturbed, write_model

PROMPT = list(range(5, 45))
STEPS = 24


@pytest.mark.parametrize("second", ["control", "all"])
def test_no_step_is_fast_and_no_token_changes(tmp_path: Path, second: Literal["control", "all"]) -> None:
    folder = write_model(tmp_path / "model", LLAMA)
    settings = [SyncSettings(sync="fast", seal="all"), SyncSettings(sync="fast", seal=second)]
    with cluster(tmp_path, 2) as group:
        group.load(folder, [3, 2], settings[0])
        group.loads[1] = msgspec.structs.replace(group.loads[1], sync=settings[1])
        group.ranks[1].send(group.loads[1])
        assert isinstance(group.ranks[1].expect(Loaded), Loaded)
        group.form()
        assert group.generate(request(PROMPT, STEPS)).tokens == undisturbed(folder, PROMPT, STEPS)
        beat = group.ranks[0].expect(Heartbeat)
        assert (beat.sync_mode, beat.sync_reason) == ("safe", ALL_SEALED)
        for rank in group.ranks:
            modes = {said.sync_mode for said in rank.seen if isinstance(said, Heartbeat)}
            assert modes == {"safe"}
