"""The hash chain: each record names the hash of the one before, so that an edit, a gap or another order shows.

``hash = SHA-256(0x00 || RFC 8785 JSON of the record without "hash")``; the zero byte keeps leaf hashes apart from those
of inner nodes, should records ever be put into a Merkle tree (RFC 6962).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from safeguard.audit.canonical import Record, canonical, parse
from safeguard.errors import AuditError

FILE_SCHEMA = "safeguard.dev/audit-file/v1"
CHECKPOINT_SCHEMA = "safeguard.dev/checkpoint/v1"
START = "0" * 64  # `prev` of the first record of a chain
MAX_LINE = 16 * 2**20  # bytes; a longer line is refused when written and when read


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Where a chain stands: the ``file`` id, the last record's ``seq`` and ``hash``. Kept elsewhere, it shows a cut
    tail.
    """

    file: str
    seq: int = -1
    hash: str = START


def digest(record: Mapping[str, Any]) -> str:
    """The record's hash, hex. Raises ValueError for a record that has no canonical JSON."""
    rest = {name: value for name, value in record.items() if name != "hash"}
    return hashlib.sha256(b"\x00" + canonical(rest)).hexdigest()


def link(head: ChainHead, records: Iterable[Mapping[str, Any]]) -> tuple[ChainHead, tuple[Record, ...]]:
    """A processor: numbers and chains ``records`` behind ``head``; gives the new head and the finished records."""
    linked: list[Record] = []
    for record in records:
        chained = {**record, "seq": head.seq + 1, "prev": head.hash}
        chained["hash"] = digest(chained)
        linked.append(chained)
        head = ChainHead(head.file, chained["seq"], chained["hash"])
    return head, tuple(linked)


def to_line(record: Mapping[str, Any]) -> bytes:
    """One line of the file. Raises AuditError for a record longer than ``MAX_LINE``."""
    data = canonical(record) + b"\n"
    if len(data) > MAX_LINE:
        raise AuditError(f"a decision record of {len(data)} bytes is too long (at most {MAX_LINE}): use capture 'hmac'")
    return data


def from_line(line: bytes) -> Record:
    """The record of one line, its own hash checked. Raises ValueError with the reason."""
    if len(line) > MAX_LINE:
        raise ValueError(f"it is longer than {MAX_LINE} bytes")
    if not line.endswith(b"\n"):
        raise ValueError("it has no end")
    record = parse(line[:-1])
    if record.get("hash") != digest(record):
        raise ValueError("its hash does not match its content")
    return record


def genesis(file: str, time: str, labels: Mapping[str, str], previous: Mapping[str, Any] | None) -> Record:
    """The first record of a file. ``previous`` is the checkpoint (file, records, seq, hash) that the last file ended
    with.
    """
    return {"schema": FILE_SCHEMA, "file": file, "time": time, "labels": dict(labels), "previous": previous}


def checkpoint(file: str, time: str, records: int, following: str | None) -> Record:
    """The last record of a file: how many decisions it holds, and the id of the file that goes on, if any."""
    return {"schema": CHECKPOINT_SCHEMA, "file": file, "time": time, "records": records, "next": following}
