"""Finding decisions again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from safeguard.audit import Applied, AuditLog, Decision, Output, Screen, query
from safeguard.errors import AuditError

Make = Callable[..., Decision]
NewLog = Callable[..., AuditLog]


def at(hour: int) -> datetime:
    return datetime(2026, 8, 1, hour, tzinfo=UTC)


@pytest.fixture
def folder(new_log: NewLog, make_decision: Make) -> Path:
    log = new_log()
    applied = (Applied("weapon", "eiup", "1", 1.0),)
    log.append(
        [
            make_decision(time=at(1), tenant="shop", request_id="r1", output=Output("aa" * 32)),
            make_decision(time=at(2), tenant="news", result="block", output=None, applied=()),
            make_decision(time=at(3), screen=Screen(), applied=applied, output=Output("bb" * 32)),
        ]
    )
    log.close()
    return log.folder


@pytest.mark.parametrize(
    ("filters", "hours"),
    [
        ({}, [1, 2, 3]),
        ({"concept": "blood"}, [1, 2]),
        ({"concept": "weapon"}, [3]),
        ({"concept": "nothing"}, []),
        ({"result": "block"}, [2]),
        ({"tenant": "shop"}, [1]),
        ({"request_id": "r1"}, [1]),
        ({"tenant": "shop", "result": "block"}, []),
        ({"image_sha256": "bb" * 32}, [3]),
        ({"image_sha256": "aaaa"}, [1]),
        ({"since": at(2)}, [2, 3]),
        ({"until": "2026-08-01T02:00:00Z"}, [1]),
        ({"since": "2026-08-01T03:30:00+02:00", "until": "2026-08-01T03:00:00"}, [2]),
        ({"since": "2026-08-02"}, []),
    ],
)
def test_filters(folder: Path, filters: dict[str, object], hours: list[int]) -> None:
    found = query(folder, **filters)  # type: ignore[arg-type]
    assert [datetime.fromisoformat(record["time"]).hour for record in found] == hours


def test_by_revision_and_by_decision_id(folder: Path) -> None:
    records = list(query(folder))
    assert list(query(folder, revision=records[0]["policy"]["revision"][:12])) == records
    assert list(query(folder, decision_id=records[1]["decision_id"])) == [records[1]]


def test_a_line_that_cannot_be_read_is_passed_over(folder: Path) -> None:
    (path,) = folder.glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"rubbish\n", b'{"schema":"safeguard.dev/decision/v1"}\n', *lines[2:]]))
    assert len(list(query(folder, tenant="news"))) == 1
    assert len(list(query(folder))) == 3


def test_a_wrong_time_is_an_error_at_the_call(folder: Path) -> None:
    with pytest.raises(AuditError, match="RFC 3339"):
        query(folder, since="yesterday")


def test_a_missing_folder_is_an_error_at_the_call(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot read the audit log"):
        query(tmp_path / "nowhere")
