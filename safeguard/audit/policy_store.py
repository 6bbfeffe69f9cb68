"""Policy snapshots by digest, beside the log: what a revision meant, years later."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from safeguard._log import get_logger
from safeguard.audit.decision import is_revision
from safeguard.audit.durable import make_folder, put_file
from safeguard.errors import AuditError

FOLDER = "policies"

_log = get_logger("safeguard.audit")


def snapshot_path(folder: Path, revision: str) -> Path:
    """Where a revision's snapshot lies. Raises AuditError for what is no SHA-256 (and could lead out of the folder)."""
    if not is_revision(revision):
        raise AuditError("a policy revision is a hex SHA-256 of 64 digits", path=str(folder))
    return folder / FOLDER / f"{revision}.json"


def check_digest(revision: str, canonical: bytes) -> None:
    """Raises AuditError unless ``revision`` is the SHA-256 of ``canonical``."""
    if hashlib.sha256(canonical).hexdigest() != revision:
        raise AuditError(f"policy revision {revision[:12]} is not the SHA-256 of its snapshot: give Policy.canonical")


def store(folder: Path, revision: str, canonical: bytes) -> None:
    """Archives a snapshot, durable and whole or not at all; a second time it does nothing. Raises AuditError."""
    path = snapshot_path(folder, revision)
    check_digest(revision, canonical)
    try:
        if path.read_bytes() == canonical:
            return
        _log.warning("policy_snapshot_rewritten", revision=revision, path=str(path))
    except OSError:
        pass  # not there, or not readable: writing tells
    if not os.path.isdir(path.parent):
        make_folder(path.parent)
    put_file(path, canonical, replace=True)


def load_snapshot(folder: Path, revision: str) -> bytes:
    """The canonical JSON of an archived policy. Raises AuditError where it is missing or was changed."""
    path = snapshot_path(folder, revision)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        message = f"{path}: policy revision {revision[:12]} is not archived: restore the file from a backup"
        raise AuditError(message, path=str(path)) from error
    except OSError as error:
        raise AuditError(f"{path}: cannot read the policy snapshot: {error.strerror}", path=str(path)) from error
    if hashlib.sha256(data).hexdigest() != revision:
        message = f"{path}: the policy snapshot was changed: it no longer has the digest {revision[:12]} of its name"
        raise AuditError(message, path=str(path))
    return data
