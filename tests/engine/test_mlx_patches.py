"""The tool that patches MLX: on small trees that hold its anchors, and on a real one (EXOD_MLX_TREE)."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mlx_patches.__main__ import main
from mlx_patches.edits import ADDITIONS, EDITS, INFERRED, KNOWN, READ, TRACE, Edit
from mlx_patches.switch import GETTER, SETTER, find_switch

FILES = tuple(dict.fromkeys(edit.file for edit in EDITS))
Snapshot = dict[str, tuple[bytes, int]]


def make_tree(root: Path, version: str = "0.32.2") -> Path:
    """An MLX tree as far as the tool looks: a version, and every anchor once among other lines."""
    major, minor, patch = version.split(".")
    for name in FILES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        anchors = [edit.anchor for edit in EDITS if edit.file == name]
        filler = [f"// {name}, line {number}\n" for number in range(len(anchors) + 1)]
        path.write_text(filler[0] + "".join(a + f for a, f in zip(anchors, filler[1:], strict=True)))
        path.chmod(0o640)
    (root / "mlx/version.h").write_text(
        f"#pragma once\n#define MLX_VERSION_MAJOR {major}\n"
        f"#define MLX_VERSION_MINOR {minor}\n#define MLX_VERSION_PATCH {patch}\n"
    )
    return root


def snapshot(root: Path) -> Snapshot:
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mode)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "mlx-source")


@pytest.mark.parametrize("version", KNOWN)
def test_apply_inserts_every_edit_of_the_version_and_revert_restores_every_byte(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = make_tree(tmp_path, version)
    before = snapshot(tree)
    assert main(["check", str(tree)]) == 0
    assert "not patched" in capsys.readouterr().out
    assert main(["apply", str(tree)]) == 0
    for edit in EDITS:
        applied = edit.patched in (tree / edit.file).read_bytes()
        assert applied == (version in edit.versions)
    for addition in ADDITIONS:
        assert (tree / addition.file).read_bytes() == addition.content
    assert main(["check", str(tree)]) == 0
    assert f"MLX {version}: patched" in capsys.readouterr().out
    assert main(["revert", str(tree)]) == 0
    assert snapshot(tree) == before


def test_what_is_done_already_is_not_done_again(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["revert", str(tree)])
    assert "not patched, nothing to do" in capsys.readouterr().out
    main(["apply", str(tree)])
    patched = snapshot(tree)
    capsys.readouterr()
    assert main(["apply", str(tree)]) == 0
    assert "already patched, nothing to do" in capsys.readouterr().out
    assert snapshot(tree) == patched


@pytest.mark.parametrize("version", [READ[-1], INFERRED[-1]])
def test_a_version_nobody_has_built_is_said_to_be_one(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["apply", str(make_tree(tmp_path, version))])
    assert ("nobody of exod has built" in capsys.readouterr().out) == (version in INFERRED)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: f"{edit.file}:{edit.anchor.strip()}")
@pytest.mark.parametrize("times", [0, 2])
def test_an_anchor_that_is_not_there_once_is_named_and_nothing_is_written(
    edit: Edit, times: int, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tree / edit.file
    path.write_text(path.read_text().replace(edit.anchor, "// between\n".join([edit.anchor] * times)))
    before = snapshot(tree)
    for verb in ("check", "apply", "revert"):
        assert main([verb, str(tree)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{edit.file}: the anchor «{edit.anchor.strip()}» occurs {times} times, not once" in error
    assert snapshot(tree) == before


def test_everything_in_the_way_is_named_at_once(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / FILES[1]).write_text("nothing of it\n")
    (tree / FILES[2]).unlink()
    assert main(["apply", str(tree)]) == 1
    error = capsys.readouterr().err
    assert all(edit.anchor.strip() in error for edit in EDITS if edit.file == FILES[1])
    assert f"{FILES[2]}: the file is missing" in error


@pytest.mark.parametrize("verb", ["check", "apply", "revert"])
def test_a_patch_changed_by_hand_is_refused(verb: str, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["apply", str(tree)])
    path = tree / "mlx/backend/metal/event.cpp"
    path.write_text(path.read_text().replace("      return;\n", "      return; // mine\n"))
    before = snapshot(tree)
    assert main([verb, str(tree)]) == 1
    assert "mlx/backend/metal/event.cpp: locally modified" in capsys.readouterr().err
    assert snapshot(tree) == before


def test_a_tree_that_knows_the_name_already_is_refused(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tree / "mlx/transforms.cpp"
    path.write_text(path.read_text() + "// host_sync of somebody else\n")
    assert main(["apply", str(tree)]) == 1
    assert "mlx/transforms.cpp: locally modified" in capsys.readouterr().err


def test_a_foreign_file_in_the_place_of_an_added_one_is_refused(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / ADDITIONS[0].file).write_text("somebody else's\n")
    before = snapshot(tree)
    assert main(["apply", str(tree)]) == 1
    assert f"{ADDITIONS[0].file}: locally modified" in capsys.readouterr().err
    assert snapshot(tree) == before


def test_changes_beside_the_patch_survive_its_removal(tree: Path) -> None:
    main(["apply", str(tree)])
    path = tree / "mlx/transforms.cpp"
    path.write_text("// my own work\n" + path.read_text())
    assert main(["revert", str(tree)]) == 0
    assert path.read_text().startswith("// my own work\n")
    assert TRACE not in path.read_bytes()


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_half_patched_tree_is_reported_and_can_go_either_way(
    verb: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unpatched = snapshot(tree)
    main(["apply", str(tree)])
    patched = snapshot(tree)
    (tree / FILES[0]).write_bytes(unpatched[FILES[0]][0])
    assert main(["check", str(tree)]) == 1
    assert "half patched" in capsys.readouterr().err
    assert main([verb, str(tree)]) == 0
    assert snapshot(tree) == (patched if verb == "apply" else unpatched)


@pytest.mark.parametrize("verb", ["apply", "revert"])
@pytest.mark.parametrize("moved", range(len(FILES)))
def test_a_write_that_fails_midway_leaves_the_tree_as_it_was(
    verb: str, moved: int, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if verb == "revert":
        main(["apply", str(tree)])
    before = snapshot(tree)
    moves = 0
    real_replace = Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves > moved:
            raise OSError(28, "No space left on device", str(target))
        return real_replace(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert main([verb, str(tree)]) == 1
    assert "cannot be written: No space left on device; nothing was changed" in capsys.readouterr().err
    assert snapshot(tree) == before


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda tree: shutil.rmtree(tree), "there is no such folder"),
        (lambda tree: (tree / "mlx/version.h").unlink(), "not an MLX source tree"),
        (lambda tree: (tree / "mlx/version.h").write_text("// none\n"), "states no version of MLX"),
        (lambda tree: make_tree(tree, "0.31.0"), "MLX 0.31.0 is not known here, only 0.32.1"),
    ],
)
def test_what_is_no_known_tree_is_refused_in_one_line(
    spoil: object, says: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(spoil)
    spoil(tree)
    assert main(["apply", str(tree)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mlx_patches: refused: ")
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["frobnicate", "."], ["apply"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "mlx_patches", *arguments], capture_output=True, check=False)
    assert done.returncode == 2


def test_every_edit_only_inserts_and_says_why() -> None:
    for edit in EDITS:
        assert TRACE in edit.text.encode()
        assert edit.anchor not in edit.text
        assert edit.anchor.count("\n") == 1, "an anchor is one line: no copy of MLX is kept here"
        assert edit.why
        assert set(edit.versions) <= set(KNOWN)


def test_the_switch_is_absent_where_the_module_is_not_imported_or_has_no_such_symbol() -> None:
    assert find_switch("no_such_module") is None
    assert importlib.util.find_spec("_ctypes") is not None
    assert find_switch("_ctypes") is None


def test_looking_for_the_switch_imports_no_mlx() -> None:
    code = "import sys, mlx_patches.switch as s; assert s.find_switch() is None; assert 'mlx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_switch_is_found_through_the_extension_module_and_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc) to make a library that has the switch")
    source, library = tmp_path / "core.c", tmp_path / "core.so"
    source.write_text(f"static int on = 1; int {GETTER}(void) {{ return on; }} void {SETTER}(int v) {{ on = v; }}")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    module = ModuleType("patched_core")
    module.__file__ = str(library)
    monkeypatch.setitem(sys.modules, "patched_core", module)
    switch = find_switch("patched_core")
    assert switch is not None
    assert switch.gpu_may_wait()
    switch.set_gpu_may_wait(False)
    assert not switch.gpu_may_wait()
    assert ctypes.CDLL(str(library))[GETTER]() == 0
    switch.set_gpu_may_wait(True)
    assert switch.gpu_may_wait()


def test_the_added_files_export_the_names_that_the_switch_looks_for() -> None:
    header = next(addition.content.decode() for addition in ADDITIONS if addition.file.endswith(".h"))
    assert f"MLX_HOST_SYNC_EXPORT int {GETTER}();" in header
    assert f"MLX_HOST_SYNC_EXPORT void {SETTER}(int enabled);" in header


def test_a_real_tree_is_patched_and_restored(tmp_path: Path) -> None:
    real = os.environ.get("EXOD_MLX_TREE")
    if not real:
        pytest.skip("EXOD_MLX_TREE names no source tree of MLX")
    for name in (*FILES, "mlx/version.h"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(real) / name, tmp_path / name)
    assert main(["revert", str(tmp_path)]) == 0
    before = snapshot(tmp_path)
    assert main(["apply", str(tmp_path)]) == 0
    assert snapshot(tmp_path) != before
    assert main(["revert", str(tmp_path)]) == 0
    assert snapshot(tmp_path) == before
