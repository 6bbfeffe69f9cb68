"""The key behind the prompts' HMACs."""

from __future__ import annotations

import secrets
from pathlib import Path

from safeguard.audit.durable import put_file
from safeguard.errors import AuditError

FILE = "hmac.key"
KEY_BYTES = 32
LEAST_BYTES = 16


def load_or_make_key(folder: Path) -> bytes:
    """The folder's key; 32 random bytes in ``hmac.key``, for its owner only, where there is none yet.

    Two processes that come at once get the same key. Raises AuditError.
    """
    path = folder / FILE
    try:
        if not path.exists():
            put_file(path, secrets.token_bytes(KEY_BYTES), replace=False)
        key = path.read_bytes()
    except OSError as error:
        raise AuditError(f"{path}: cannot read the HMAC key: {error.strerror}", path=str(path)) from error
    return check_key(key, str(path))


def check_key(key: bytes, where: str = "key") -> bytes:
    """``key``, or AuditError where it is too short to keep prompts from being guessed."""
    if len(key) < LEAST_BYTES:
        message = f"{where}: an HMAC key needs at least {LEAST_BYTES} bytes, {KEY_BYTES} random ones are best"
        raise AuditError(message, path=where)
    return key
