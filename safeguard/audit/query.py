"""Finding decisions: a plain walk over the JSON lines, nothing to install, nothing held in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TypeAlias

from safeguard._log import get_logger
from safeguard.audit.canonical import Record, parse, rfc3339
from safeguard.audit.decision import READABLE
from safeguard.audit.log_files import lines, log_files
from safeguard.errors import AuditError

Test: TypeAlias = Callable[[Record], bool]

_log = get_logger("safeguard.audit")


def query(
    folder: str | os.PathLike[str],
    *,
    concept: str | None = None,
    result: str | None = None,
    request_id: str | None = None,
    tenant: str | None = None,
    revision: str | None = None,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    image_sha256: str | None = None,
    decision_id: str | None = None,
) -> Iterator[Record]:
    """The decision records that match every filter, file by file, oldest file first.

    ``concept`` matches what was found or acted on; ``revision`` and ``image_sha256`` may be the first digits only;
    ``since`` (included) and ``until`` (not included) are aware datetimes or RFC 3339 text, UTC where no zone is given.
    It does not verify: a line that cannot be read is passed over with a warning. Raises AuditError at the call, not at
    the first record.
    """
    tests: list[Test] = [_has_shape]
    same = {"result": result, "request_id": request_id, "tenant": tenant, "decision_id": decision_id}
    for name, wanted in same.items():
        if wanted is not None:
            tests.append(_equals(name, wanted))
    if concept is not None:
        tests.append(lambda record: concept in concepts(record))
    if revision is not None:
        tests.append(lambda record: str(record["policy"]["revision"]).startswith(revision))
    if image_sha256 is not None:
        tests.append(lambda record: image_of(record).startswith(image_sha256))
    if since is not None:
        first = _moment(since)
        tests.append(lambda record: record["time"] >= first)
    if until is not None:
        end = _moment(until)
        tests.append(lambda record: record["time"] < end)
    log_files(folder)
    return _walk(folder, tests)


def concepts(record: Record) -> tuple[str, ...]:
    """The concepts that were found in or acted on for this image, in order, each once."""
    found = [*record["screen"]["activated"], *(one["concept"] for one in record["applied"])]
    return tuple(dict.fromkeys(found))


def image_of(record: Record) -> str:
    """The image's SHA-256, or an empty text where none was made."""
    return str((record["output"] or {}).get("image_sha256") or "")


def _walk(folder: str | os.PathLike[str], tests: list[Test]) -> Iterator[Record]:
    for path in log_files(folder):
        for number, line in enumerate(lines(path), 1):
            try:
                record = parse(line.removesuffix(b"\n"))
                if record.get("schema") not in READABLE or not all(test(record) for test in tests):
                    continue
            except (ValueError, KeyError, TypeError, AttributeError):
                _log.warning("log_line_unreadable", file=str(path), line=number, hint="run `safeguard audit verify`")
                continue
            yield record


def _has_shape(record: Record) -> bool:
    """Raises, as the other tests do, for a record that whoever reads it would stumble over."""
    texts = (record["decision_id"], record["time"], record["result"], record["policy"]["name"], image_of(record))
    if not all(isinstance(text, str) for text in (*texts, record["policy"]["revision"], *concepts(record))):
        raise TypeError
    return True


def _equals(name: str, wanted: str) -> Test:
    return lambda record: bool(record[name] == wanted)


def _moment(time: datetime | str) -> str:
    """``time`` in the form of the records, whose text order is time order."""
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError as error:
            raise AuditError("a time is RFC 3339, such as 2026-08-01 or 2026-08-01T12:00:00Z") from error
    return rfc3339(time if time.tzinfo else time.replace(tzinfo=UTC))
