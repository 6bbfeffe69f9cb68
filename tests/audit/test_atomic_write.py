"""The one atomic write: whole or not at all, on the disk, with nothing left beside it."""

from __future__ import annotations

import ast
import os
import stat
import threading
from pathlib import Path

import pytest

from safeguard import _io
from safeguard._io import atomic_write, sync_folder, write_whole

ROOT = Path(__file__).parents[2]


def test_a_file_is_written_whole_with_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert atomic_write(path, b"one\r\ntwo\n")
    assert path.read_bytes() == b"one\r\ntwo\n"
    assert os.listdir(tmp_path) == ["file"]


def test_it_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"older and longer")
    assert atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_that_must_not_be_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first")
    assert not atomic_write(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_of_many_that_come_at_once_one_is_told_that_it_wrote(tmp_path: Path) -> None:
    path, wrote = tmp_path / "file", list[int]()

    def write(number: int) -> None:
        if atomic_write(path, f"{number}".encode() * 1000, replace=False):
            wrote.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = wrote
    assert path.read_bytes() == f"{winner}".encode() * 1000


def test_a_disk_that_refuses_leaves_what_was_there_and_no_draft(tmp_path: Path) -> None:
    """A folder stands where the file should be, so the last step fails."""
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        atomic_write(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").is_dir()


def test_a_folder_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        atomic_write(tmp_path / "nowhere" / "file", b"new")


def test_write_whole_makes_the_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "file", b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_its_owner_may_read_a_file_that_is_asked_for_so(tmp_path: Path) -> None:
    atomic_write(tmp_path / "own", b"key", mode=0o600)
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600


def test_a_folder_is_not_opened_where_the_system_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_io.os, "name", "nt")
    sync_folder(tmp_path / "nowhere")


ELSEWHERE = {
    "safeguard/_io.py": "the atomic write itself",
    "safeguard/audit/durable.py": "the first line of a file that is appended to afterwards",
    "safeguard/feedback/jsonl.py": "appends lines, under a lock",
}


def test_no_module_renames_or_syncs_files_by_itself() -> None:
    calls = {"os.replace", "os.rename", "os.fsync", "os.link", "os.pread", "os.fchmod", "tempfile.mkstemp"}
    found = set()
    for path in (path for top in ("safeguard", "plugins") for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == set(ELSEWHERE)
