"""Finding decisions: a plain walk over the JSON lines, nothing to install, nothing held in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, TypedDict, Unpack, cast

from safeguard._log import get_logger
from safeguard.audit.canonical import Record, parse, rfc3339
from safeguard.audit.decision import READABLE
from safeguard.audit.log_files import lines, log_files
from safeguard.errors import AuditError

Test: TypeAlias = Callable[[Record], bool]

_log = get_logger("safeguard.audit")


class Filters(TypedDict, total=False):
    """What decisions can be found by. Times are aware datetimes or RFC 3339 text, UTC where no zone is given.

    Attributes:
        concept: Found in the prompt, or acted on.
        result: ``erase``, ``block``, ``flag``, ``review`` or ``pass``.
        request_id: The request's id.
        tenant: The tenant.
        revision: The policy's revision, or its first digits.
        since: At this time or later.
        until: Before this time.
        image_sha256: The image's digest, or its first digits.
        decision_id: The decision's id.
    """

    concept: str | None
    result: str | None
    request_id: str | None
    tenant: str | None
    revision: str | None
    since: datetime | str | None
    until: datetime | str | None
    image_sha256: str | None
    decision_id: str | None


def query(folder: str | os.PathLike[str], **filters: Unpack[Filters]) -> Iterator[Record]:
    """The decision records that match every filter, file by file, oldest file first.

    It does not verify: a line that cannot be read is skipped with a warning.

    Args:
        folder: The audit folder, or one of its files.
        **filters: Any of `Filters`; None is no filter.

    Returns:
        The records, read as they are asked for.

    Raises:
        AuditError: The folder holds no log, or a time cannot be read. At the call, not at the first record.
        TypeError: There is no filter of that name.
    """
    unknown = filters.keys() - Filters.__annotations__.keys()
    if unknown:
        raise TypeError(f"there is no filter {min(unknown)!r}; the filters are {', '.join(Filters.__annotations__)}")
    given = cast(Mapping[str, Any], filters)
    tests = [_has_shape, *(_TESTS[name](wanted) for name, wanted in given.items() if wanted is not None)]
    log_files(folder)
    return _walk(folder, tests)


def concepts(record: Record) -> tuple[str, ...]:
    """The concepts that were found in or acted on for this image, in order, each once."""
    names = [*record["screen"]["activated"], *(effect["concept"] for effect in record["applied"])]
    return tuple(dict.fromkeys(names))


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


def _equals(name: str) -> Callable[[str], Test]:
    return lambda wanted: lambda record: bool(record[name] == wanted)


def _has(concept: str) -> Test:
    return lambda record: concept in concepts(record)


def _of_revision(digits: str) -> Test:
    return lambda record: str(record["policy"]["revision"]).startswith(digits)


def _of_image(digits: str) -> Test:
    return lambda record: image_of(record).startswith(digits)


def _since(time: datetime | str) -> Test:
    first = _moment(time)
    return lambda record: record["time"] >= first


def _until(time: datetime | str) -> Test:
    end = _moment(time)
    return lambda record: record["time"] < end


def _moment(time: datetime | str) -> str:
    """``time`` in the form of the records, whose text order is time order."""
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError as error:
            raise AuditError("a time is RFC 3339, such as 2026-08-01 or 2026-08-01T12:00:00Z") from error
    return rfc3339(time if time.tzinfo else time.replace(tzinfo=UTC))


_TESTS: Final[Mapping[str, Callable[[Any], Test]]] = {
    **{name: _equals(name) for name in ("result", "request_id", "tenant", "decision_id")},
    "concept": _has,
    "revision": _of_revision,
    "image_sha256": _of_image,
    "since": _since,
    "until": _until,
}
