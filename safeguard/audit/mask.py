"""What of a prompt reaches the record: nothing, a keyed HMAC, a redacted text, or all of it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from safeguard.audit.canonical import Record, plain
from safeguard.audit.redact import redact
from safeguard.errors import AuditError

CAPTURES = ("none", "hmac", "redacted", "full")

PROMPT, PROMPT_HMAC = "/subject/prompt", "/subject/prompt_hmac"  # JSON pointers, as in `redacted` and `masked`


def prompt_hmac(prompt: str, key: bytes) -> str:
    """Hex HMAC-SHA256 of the prompt's UTF-8: equal prompts show as equal to holders of ``key``, and to nobody else."""
    return hmac.new(key, prompt.encode("utf-8"), hashlib.sha256).hexdigest()


def key_id(key: bytes) -> str:
    """Eight hex digits that say which key made an HMAC, without telling the key."""
    return hashlib.sha256(b"safeguard.dev/audit-key\n" + key).hexdigest()[:8]


class Mask:
    """A processor: takes a record with ``subject.prompt`` in clear and leaves what ``capture`` allows.

    Fields that are gone are listed in ``redacted``, fields that stand in another form in ``masked`` (JSON pointers, the
    terms of Open Policy Agent's decision logs). Raises AuditError for an unknown mode and where ``redact`` fails.
    """

    def __init__(self, capture: str, key: bytes, redact: Callable[[str], str] = redact) -> None:
        if capture not in CAPTURES:
            raise AuditError(f"capture must be one of {', '.join(CAPTURES)}")
        self._capture, self._key, self._redact = capture, key, redact
        self._key_id = key_id(key)

    def __call__(self, record: Record) -> Record:
        subject = dict(record["subject"])
        prompt = subject.pop("prompt", None)
        if prompt is None:
            return {**record, "subject": {**subject, "prompt_hmac": None, "prompt_key": None}}
        redacted: list[str] = []
        masked: list[str] = []
        if self._capture == "none":
            redacted = [PROMPT, PROMPT_HMAC]
            subject |= {"prompt_hmac": None, "prompt_key": None}
        else:
            subject |= {"prompt_hmac": prompt_hmac(prompt, self._key), "prompt_key": self._key_id}
        if self._capture in ("hmac", "redacted"):
            masked = [PROMPT]
        if self._capture == "redacted":
            subject["prompt"] = self._redacted(prompt)
        if self._capture == "full":
            subject["prompt"] = prompt
        return {**record, "subject": subject, "redacted": redacted, "masked": masked}

    def _redacted(self, prompt: str) -> str:
        try:
            return str(plain(str(self._redact(prompt))))
        except Exception as error:  # noqa: BLE001 - a stranger's function may raise anything
            name = type(error).__name__
            # Not chained: the other exception may quote the prompt.
            raise AuditError(f"the redact function raised {name}: mend it, or use capture 'hmac'") from None
