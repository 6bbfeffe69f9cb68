"""Policies kept by revision."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from safeguard.errors import AuditError
from safeguard.policy import PolicyArchive, load_policy


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    archive = PolicyArchive(tmp_path / "a" / "b")
    policy = load_policy("builtin://demo")
    path = archive.store(policy)
    assert path.name == f"{policy.revision}.json"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == policy.revision
    assert archive.load(policy.revision).concepts == policy.concepts
    assert archive.revisions() == [policy.revision]


def test_storing_twice_leaves_one_file_and_nothing_beside_it(tmp_path: Path) -> None:
    archive = PolicyArchive(tmp_path)
    policy = load_policy("builtin://demo")
    assert archive.store(policy) == archive.store(policy)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", [(b"blood", b"water"), (b"{", b"[")])
def test_a_changed_snapshot_is_refused(tmp_path: Path, change: tuple[bytes, bytes]) -> None:
    archive = PolicyArchive(tmp_path)
    policy = load_policy("builtin://demo")
    path = archive.store(policy)
    path.write_bytes(path.read_bytes().replace(*change))
    with pytest.raises(AuditError, match="altered") as raised:
        archive.load(policy.revision)
    assert raised.value.path == str(path)
    with pytest.raises(AuditError, match="altered"):
        archive.store(policy)


def test_another_policy_under_the_name_is_refused(tmp_path: Path) -> None:
    archive = PolicyArchive(tmp_path)
    policy = load_policy("builtin://demo")
    archive.store(policy).write_bytes(load_policy("builtin://nsfw").canonical)
    with pytest.raises(AuditError, match="altered"):
        archive.load(policy.revision)


@pytest.mark.parametrize("revision", ["", "../../etc/passwd", "0" * 63, "A" * 64, "0" * 64])
def test_a_revision_that_is_not_here_is_an_audit_error(tmp_path: Path, revision: str) -> None:
    with pytest.raises(AuditError):
        PolicyArchive(tmp_path).load(revision)


def test_a_folder_that_cannot_be_written_is_an_audit_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="cannot archive"):
        PolicyArchive(tmp_path / "file" / "folder").store(load_policy("builtin://demo"))
