"""Records of 0.1, whose field `redacted` was called `erased`: they are read as they were written, never rewritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeguard.audit import AuditLog, Decision, query, verify
from safeguard.audit.canonical import canonical
from safeguard.audit.chain import digest

V1 = "safeguard.dev/decision/v1"


def in_old_form(record: dict[str, Any]) -> dict[str, Any]:
    """A record as 0.1 wrote it: the older schema, and `erased` in place of `redacted`."""
    return {**{name: value for name, value in record.items() if name != "redacted"}, "schema": V1, "erased": record["redacted"]}


def rewritten(path: Path, old: Callable[[int], bool]) -> None:
    """Write the log again with the decisions whose seq is ``old`` in the old form, in a chain that holds."""
    lines, prev = [], None
    for line in path.read_bytes().splitlines():
        record = json.loads(line)
        if "decision_id" in record and old(record["seq"]):
            record = in_old_form(record)
        if prev is not None:
            record["prev"] = prev
        record["hash"] = prev = digest(record)
        lines.append(canonical(record) + b"\n")
    path.write_bytes(b"".join(lines))


@pytest.fixture(params=["old", "old and new"])
def log(five: Path, request: pytest.FixtureRequest) -> Path:
    """A closed file of five decisions, all in the old form, or those up to seq 3."""
    rewritten(five, lambda seq: request.param == "old" or seq <= 3)
    return five


def test_its_chain_is_verified_and_its_decisions_are_counted(log: Path) -> None:
    report = verify(log.parent)
    assert (report.ok, report.first_bad, report.records, report.policies) == (True, None, 5, 1)


def test_a_change_of_an_old_record_is_found(log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"erased":[]', b'"erased":[1]', 1))
    bad = verify(log.parent).first_bad
    assert bad is not None
    assert (bad.seq, "hash" in bad.reason) == (1, True)


def test_a_query_gives_old_records_as_they_were_written(log: Path) -> None:
    records = list(query(log.parent, concept="blood"))
    assert [("erased" in record, "redacted" in record) for record in records[:3]] == [(True, False)] * 3
    assert all(record["hash"] == digest(record) for record in records)
    assert len(records) == 5


def test_new_decisions_are_written_in_the_new_form_beside_old_ones(
    log: Path, new_log: Callable[..., AuditLog], make_decision: Callable[..., Decision]
) -> None:
    with new_log() as again:
        (record,) = again.append([make_decision()], capture="none")
    assert record["redacted"] == ["/subject/prompt", "/subject/prompt_hmac"]
    assert "erased" not in record
    assert verify(log.parent).records == 6
