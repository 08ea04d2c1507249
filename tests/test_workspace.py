"""A run's directory survives being killed at any point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from instatune_deploy.errors import UsageError
from instatune_deploy.values.hashing import content_key
from instatune_deploy.workspace import Workspace, new_directory, tree_key, write_json, write_text


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 10**6 + "\udc80")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_bytes() == before
    assert names(tmp_path) == ["a.json"]


def test_a_file_gets_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "a")
    (tmp_path / "b.txt").write_text("b")
    assert (tmp_path / "deep" / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    for content in ("first", "second"):
        with new_directory(path) as draft:
            (draft / "file").write_text(content)
            assert not path.exists() or (path / "file").read_text() == "first"
        assert (path / "file").read_text() == content
    with pytest.raises(UnicodeEncodeError), new_directory(path) as draft:
        write_text(draft / "file", "\udc80")
    assert (path / "file").read_text() == "second"
    assert names(tmp_path) == ["artifact"]


def test_keys_follow_content_and_names(tmp_path: Path) -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) != content_key({"a": 2, "b": 2})
    assert content_key("ab", "c") != content_key("a", "bc")
    tree = tmp_path / "tree"
    write_text(tree / "a", "1")
    write_text(tree / "b" / "c", "2")
    key = tree_key(tree)
    assert tree_key(tree) == key
    write_text(tree / "b" / "cache-0123456789abcdef.arrow", "written by datasets when somebody reads what is there")
    assert tree_key(tree) == key
    (tree / "b" / "c").rename(tree / "b" / "d")
    assert tree_key(tree) != key
    assert tree_key(tree / "a") != tree_key(tree / "b" / "d")


def test_a_stage_is_done_for_its_key_while_its_outputs_exist(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    output = workspace.path("tables", "a.json")
    assert not workspace.is_done("profile", "k1")
    write_json(output, {})
    workspace.mark_done("profile", "k1", [output])
    assert workspace.is_done("profile", "k1")
    assert not workspace.is_done("profile", "k2")
    assert not workspace.is_done("search", "k1")
    output.unlink()
    assert not workspace.is_done("profile", "k1")


def test_what_is_finished_is_listed_in_order_while_its_outputs_exist(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for hour, stage in enumerate(("search", "finetune", "gone")):
        write_json(workspace.path(f"{stage}.out"), {})
        workspace.mark_done(stage, "k", [workspace.path(f"{stage}.out")])
        os.utime(workspace.path(".stages", f"{stage}.json"), (3600 * hour, 3600 * hour))
    workspace.path("gone.out").unlink()
    write_text(workspace.path(".stages", "damaged.json"), "{")
    assert [(r.stage, r.outputs, r.finished.hour) for r in workspace.finished()] == [
        ("search", ("search.out",), 0),
        ("finetune", ("finetune.out",), 1),
    ]


@pytest.mark.parametrize("record", ["", "{", "{}", "[]", '{"key": "k", "outputs": 3}', "null"])
def test_a_damaged_record_means_not_done(tmp_path: Path, record: str) -> None:
    workspace = Workspace(tmp_path)
    write_text(workspace.path(".stages", "search.json"), record)
    assert not workspace.is_done("search", "k")


HOLDER = """
import sys, time
from pathlib import Path
from instatune_deploy.workspace import Workspace
with Workspace(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_works_on_a_run_and_the_lock_of_a_dead_one_is_free(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UsageError, match="another process works on"), workspace.locked():
            pass
        holder.kill()
    with workspace.locked(), Workspace(tmp_path).locked():
        pass
    with workspace.locked():
        pass
