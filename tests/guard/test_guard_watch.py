"""A policy file that changes on disk is swapped in by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeguard.errors import PolicyError
from safeguard.policy import load_policy
from tests.support.contract_policies import concept, policy

Pipe = Any
Write = Callable[..., Path]
BLOOD, WEAPON = "concepts: {blood: {phrases: [blood]}}", "concepts: {weapon: {phrases: [weapon]}}"
PATIENCE = 60.0  # seconds; only a failing test waits so long


def eventually(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


def replace(path: Path, other: Path) -> None:
    """Put a finished file in another's place, as editors and deployments do."""
    os.replace(other, path)


@pytest.fixture
def watched(pipe: Pipe, protect: Any, write: Write) -> Any:
    guard = protect(pipe, policy(concept("fish")))
    guard.watch(write(BLOOD))
    return guard


def concepts(guard: Any) -> list[str]:
    return list(guard.policy.concepts)


def test_it_is_swapped_in_at_once(watched: Any) -> None:
    assert concepts(watched) == ["blood"]


def test_a_replaced_file_is_swapped_in(watched: Any, write: Write, tmp_path: Path) -> None:
    replace(tmp_path / "policy.yaml", write(WEAPON, "next.yaml"))
    eventually(lambda: concepts(watched) == ["weapon"])


def test_a_file_written_in_place_is_swapped_in(watched: Any, write: Write) -> None:
    write(WEAPON)
    eventually(lambda: concepts(watched) == ["weapon"])


def test_a_broken_version_is_passed_over_and_told(watched: Any, write: Write, tmp_path: Path) -> None:
    replace(tmp_path / "policy.yaml", write("concepts: {weapon: {}}", "next.yaml"))
    eventually(lambda: watched.status().last_error)
    assert watched.status().last_error.startswith("PolicyError")
    assert concepts(watched) == ["blood"]
    replace(tmp_path / "policy.yaml", write(WEAPON, "next.yaml"))
    eventually(lambda: concepts(watched) == ["weapon"])
    assert watched.status().last_error is None


def test_a_change_in_a_file_that_it_extends_counts(pipe: Pipe, protect: Any, write: Write, tmp_path: Path) -> None:
    write(BLOOD, "base.yaml")
    guard = protect(pipe, policy(concept("fish")))
    guard.watch(write("extends: [./base.yaml]"))
    replace(tmp_path / "base.yaml", write(WEAPON, "next.yaml"))
    eventually(lambda: concepts(guard) == ["weapon"])


def test_a_file_that_it_extends_and_that_comes_later_counts(watched: Any, write: Write) -> None:
    write("extends: [./base.yaml]")
    eventually(lambda: watched.status().last_error)
    write(WEAPON, "base.yaml")
    eventually(lambda: concepts(watched) == ["weapon"])


def test_a_file_that_it_came_to_extend_is_watched_too(watched: Any, write: Write, tmp_path: Path) -> None:
    write(WEAPON, "base.yaml")
    write("extends: [./base.yaml]")
    eventually(lambda: concepts(watched) == ["weapon"])
    replace(tmp_path / "base.yaml", write("concepts: {gore: {phrases: [gore]}}", "next.yaml"))
    eventually(lambda: concepts(watched) == ["gore"])


def test_a_link_that_is_turned_to_another_folder_counts(pipe: Pipe, protect: Any, write: Write, tmp_path: Path) -> None:
    """As mounted configuration is replaced: policy.yaml -> data/policy.yaml, and data is a link."""
    for version, spec in (("one", BLOOD), ("two", WEAPON)):
        (tmp_path / version).mkdir()
        write(spec, f"{version}/policy.yaml")
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "policy.yaml").symlink_to("data/policy.yaml")
    guard = protect(pipe, policy(concept("fish")))
    guard.watch(tmp_path / "policy.yaml")
    (tmp_path / "next").symlink_to("two")
    os.replace(tmp_path / "next", tmp_path / "data")
    eventually(lambda: concepts(guard) == ["weapon"])


def test_a_file_that_is_gone_keeps_the_policy_until_it_is_back(watched: Any, write: Write, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").unlink()
    eventually(lambda: watched.status().last_error)
    assert concepts(watched) == ["blood"]
    write(WEAPON)
    eventually(lambda: concepts(watched) == ["weapon"])


def test_a_version_of_now_that_cannot_be_used_is_an_error(pipe: Pipe, protect: Any, write: Write) -> None:
    guard = protect(pipe, policy(concept("fish")))
    with pytest.raises(PolicyError):
        guard.watch(write("concepts: {weapon: {}}"))
    assert concepts(guard) == ["fish"]


def test_after_a_release_nothing_is_watched(watched: Any, write: Write) -> None:
    import threading

    watched.release()
    assert not [thread for thread in threading.enumerate() if thread.name == "safeguard-watch"]
    assert load_policy(write(WEAPON)).revision != watched.status().active_revision
