"""Keeps every activated policy by its revision, so that a decision record can be resolved years later."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safeguard._io import atomic_write
from safeguard.errors import AuditError, PolicyError
from safeguard.policy.snapshot import Policy

_REVISION = re.compile(r"[0-9a-f]{64}")


class PolicyArchive:
    """A folder of snapshots, ``<revision>.json`` each. The name is the SHA-256 of the content, so a change shows."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def store(self, policy: Policy) -> Path:
        """Writes the snapshot durably, all or nothing, and gives its path; one that is there already is left alone.

        Raises AuditError where it cannot be written, or where a file of that name holds something else.
        """
        path = self._path(policy.revision)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                atomic_write(path, policy.canonical, mode=0o600)
            elif path.read_bytes() != policy.canonical:
                raise _altered(path)
        except OSError as error:
            raise AuditError(f"cannot archive the policy: {error.strerror}", path=str(path)) from error
        return path

    def load(self, revision: str) -> Policy:
        """The policy of a revision. Raises AuditError where it is not here, or is not what was stored."""
        path = self._path(revision)
        try:
            data = path.read_bytes()
        except OSError as error:
            message = f"no archived policy of revision {revision[:12]}: {error.strerror}"
            raise AuditError(message, path=str(path)) from error
        try:
            policy = Policy.from_canonical(data)
        except PolicyError as error:
            raise _altered(path) from error
        if policy.revision != revision:
            raise _altered(path)
        return policy

    def revisions(self) -> list[str]:
        """Every revision that is here, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.json") if _REVISION.fullmatch(path.stem))

    def _path(self, revision: str) -> Path:
        if not _REVISION.fullmatch(revision):
            raise AuditError("a revision is 64 hexadecimal digits", path=str(self.folder))
        return self.folder / f"{revision}.json"


def _altered(path: Path) -> AuditError:
    return AuditError("an archived policy was altered: its content is not what its name says", path=str(path))
