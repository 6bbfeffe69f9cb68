"""What the repository itself must hold to."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 16 * 2**20  # bytes of a tracked file


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_is_too_large_for_a_clone(tracked: list[Path]) -> None:
    assert [str(path) for path in tracked if path.stat().st_size > LIMIT] == []


def test_ci_runs_the_targets_that_the_readme_names() -> None:
    named = set(re.findall(r"^\$ make ([\w-]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    run = set(re.findall(r"^make ([\w-]+)$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE))
    assert run & {"test", "test-all"}  # the latter runs whatever the former does, and more
    assert named - {"eval", "bench", "train", "tables", "docs", "test"} <= run
    assert {"setup", "demo", "lint"} <= run


@pytest.mark.parametrize(
    "target",
    [
        "help",
        "setup",
        "demo",
        "test",
        "test-all",
        "test-lowest",
        "browser",
        "lint",
        "bench",
        "eval",
        "tables",
        "docs",
        "train",
        "clean",
    ],
)
def test_every_target_can_be_planned(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_set_up_is_done_once(tmp_path: Path) -> None:
    """With the stamp newer than pyproject.toml there is nothing to do; when pyproject.toml changes there is."""
    for name in ("Makefile", "pyproject.toml", "plugins/safeguard_demo/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    stamp = tmp_path / ".venv/.ready"
    stamp.parent.mkdir()
    stamp.touch()

    def plan() -> str:
        return subprocess.run(["make", "--dry-run", "setup"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "pip install" not in plan()
    later = stamp.stat().st_mtime + 10
    os.utime(tmp_path / "pyproject.toml", (later, later))
    assert "pip" in plan()


def test_the_cpu_build_of_torch_falls_back_to_the_plain_index() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "setup", "TORCH=cpu"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (line,) = [line for line in done.stdout.splitlines() if "--index-url" in line]
    first, second = line.split(" || ")
    assert "--retries 0" in first
    assert "--index-url" not in second
