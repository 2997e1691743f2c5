"""Ranks whose native group cannot be used say why in one line, and serve in safe steps all the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from exoengine.native.build import VERDICT, build
from exoengine.protocol import Heartbeat, Loaded
from tests.engine.driver import cluster, request
from tests.engine.models import undisturbed

Make = Callable[[Path, Path], None]

PROMPT = list(range(5, 45))
STEPS = 24

NO_COMPILER = "import os; os.environ['PATH'] = '/nonexistent'; os.environ.pop('CXX', None)"
NOT_PREBUILT = "from pathlib import Path; from exoengine.native import build; build.PREBUILT = Path('/nonexistent')"
OTHER_NANOBIND = (
    "import dataclasses; from exoengine.native import recipe; own = recipe.recipe();"
    " build.recipe = lambda: dataclasses.replace(own, internals=21, nanobind_version='3.0.1')"
)


def damaged(cache: Path, module: Path) -> None:
    """Half of the file is there."""
    shutil.copytree(module.parent, cache / module.parent.name)
    assert build(cache).is_ready
    file = cache / module.parent.name / module.name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def of_another_mlx(cache: Path, module: Path) -> None:
    shutil.copytree(module.parent, cache / ("0" * 20))
    (cache / ("0" * 20) / VERDICT).write_bytes(b"{}")


def not_writable(cache: Path, module: Path) -> None:
    """Root may write everywhere, but not into a file as if it were a folder."""
    cache.write_text("")


def nothing(cache: Path, module: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "prelude", "line"),
    [
        (nothing, NO_COMPILER, "there is no C++ compiler"),
        (nothing, OTHER_NANOBIND, "nanobind 3.0.1 does not match this MLX"),
        (damaged, NO_COMPILER, "may be damaged"),
        (of_another_mlx, NO_COMPILER, "there is no C++ compiler"),
        (not_writable, NO_COMPILER, "cannot be written"),
    ],
)
def test_ranks_without_it_serve_in_safe_steps_and_say_why(
    tmp_path: Path,
    llama: Path,
    module: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Make,
    prelude: str,
    line: str,
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("exoengine.native.build.PREBUILT", tmp_path / "none")
        make(folder / "native", module)
    with cluster(folder, 2, prelude=f"{NOT_PREBUILT}\n{prelude}") as ranks:
        assert all(isinstance(said, Loaded) for said in ranks.load(llama, [3, 2]))
        ranks.form()
        assert ranks.generate(request(PROMPT, STEPS)).tokens == undisturbed(llama, PROMPT, STEPS)
        for rank in ranks.ranks:
            rank.disconnect()
            why = rank.connect().native
            # The first to come finds the state as it is, the second may find what the first has made of it.
            assert line in why or "there is no C++ compiler" in why, why
            assert len(why.splitlines()) == 1
            beat = rank.expect(Heartbeat)
            assert beat.sync_mode == "safe"
