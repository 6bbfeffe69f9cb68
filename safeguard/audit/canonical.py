"""One text for one value: RFC 8785 JSON, and what is done to a value so that it has such a text."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import rfc8785

from safeguard.errors import AuditError

Record: TypeAlias = dict[str, Any]

_SAFE_INTEGER = 2**53 - 1  # the largest that every JSON reader gives back exactly (RFC 8785, appendix D)


def plain(value: Any, where: str = "") -> Any:
    """``value`` in terms of JSON that survive the way to a file and back.

    Not a number and infinity become ``null``; an integer beyond 2^53 (a seed may be one) its decimal text; lone
    surrogates are written as ``\\udcxx``; numbers of numpy become Python's. Raises AuditError, naming the place, for
    anything else.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, numbers.Integral):
        number = int(value)
        return number if abs(number) <= _SAFE_INTEGER else str(number)
    if isinstance(value, numbers.Real):
        real = float(value)
        return real if math.isfinite(real) else None
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item, f"{where}/{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [plain(item, f"{where}/{index}") for index, item in enumerate(items)]
    raise AuditError(f"a decision record cannot hold a {type(value).__name__} at {where or '/'}: give text or numbers")


def canonical(record: Mapping[str, Any]) -> bytes:
    """RFC 8785 JSON of ``record``. Raises ValueError for what has none."""
    return bytes(rfc8785.dumps(dict(record)))


def parse(data: bytes) -> Record:
    """The record that ``canonical`` wrote. Raises ValueError where ``data`` is anything but a canonical JSON object.

    Reading is as strict as writing, so that a changed blank, escape or digit shows even before a hash is computed.
    """
    try:
        record = json.loads(data.decode("utf-8"), parse_int=_number)
        same = isinstance(record, dict) and canonical(record) == data
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not same:
        raise ValueError("it is not a canonical JSON object")
    return dict(record)


def _number(digits: str) -> int | float:
    # Canonical JSON writes the float 1e20 without an exponent; as an int it could not be written again.
    if len(digits) <= 15 or abs(int(digits)) <= _SAFE_INTEGER:
        return int(digits)
    return float(digits)


def utc_now() -> datetime:
    """The real clock."""
    return datetime.now(UTC)


def rfc3339(time: datetime) -> str:
    """``time`` (aware) as RFC 3339 in UTC with microseconds, so that text order is time order."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
