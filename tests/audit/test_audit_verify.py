"""What verify finds, and what it calls by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safeguard.audit import AuditLog, BadRecord, ChainHead, Decision, verify
from safeguard.audit.canonical import canonical
from safeguard.audit.chain import digest
from safeguard.errors import AuditError

Make = Callable[..., Decision]
NewLog = Callable[..., AuditLog]


def first_bad(place: Path) -> BadRecord:
    bad = verify(place).first_bad
    assert bad is not None
    return bad


def change(path: Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))


def rehashed(line: bytes, **changes: object) -> bytes:
    """The line of a forger who knows how the hash is made."""
    record = {**json.loads(line), **changes}
    record["hash"] = digest(record)
    return canonical(record) + b"\n"


def test_an_untouched_log_holds(five: Path) -> None:
    report = verify(five.parent)
    assert (report.ok, report.first_bad, report.records, report.policies) == (True, None, 5, 1)
    assert report.files[0].state == "closed"


def test_one_file_alone_can_be_verified(five: Path) -> None:
    assert verify(five).ok


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_flipped_byte_is_found(five: Path, data: st.DataObject) -> None:
    whole = five.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= data.draw(st.integers(1, 255))
    five.write_bytes(bytes(flipped))
    try:
        bad = first_bad(five)
    finally:
        five.write_bytes(whole)
    assert bad.line == whole.count(b"\n", 0, place) + 1
    assert bad.seq == bad.line - 1


def test_a_tampered_line_is_named(five: Path) -> None:
    change(five, lambda lines: [*lines[:3], lines[3].replace(b'"result":"erase"', b'"result":"flag"'), *lines[4:]])
    bad = first_bad(five.parent)
    assert (bad.file, bad.line, bad.seq) == (five.name, 4, 3)
    assert "hash does not match" in bad.reason


def test_a_line_forged_with_its_hash_breaks_the_next(five: Path) -> None:
    change(five, lambda lines: [*lines[:3], rehashed(lines[3], result="pass"), *lines[4:]])
    bad = first_bad(five)
    assert bad.seq == 4
    assert "one of the two was replaced" in bad.reason


@pytest.mark.parametrize("gone", range(6))
def test_a_deleted_line_is_named(five: Path, gone: int) -> None:
    change(five, lambda lines: lines[:gone] + lines[gone + 1 :])
    assert first_bad(five).seq == gone


def test_lines_in_another_order_are_named(five: Path) -> None:
    change(five, lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]])
    bad = first_bad(five)
    assert bad.seq == 2
    assert "out of order, found seq 3" in bad.reason


def test_a_line_put_in_twice_is_named(five: Path) -> None:
    change(five, lambda lines: [*lines[:3], lines[2], *lines[3:]])
    assert first_bad(five).seq == 3


def test_a_torn_last_line_is_called_torn(five: Path) -> None:
    change(five, lambda lines: [*lines[:5], lines[5][:40]])
    report = verify(five)
    assert report.first_bad is not None
    assert (report.first_bad.line, report.first_bad.seq, report.records) == (6, 5, 4)
    assert report.first_bad.reason.startswith("torn tail")


def test_a_cut_tail_shows_as_an_open_file_only(five: Path) -> None:
    change(five, lambda lines: lines[:4])
    report = verify(five)
    assert (report.ok, report.files[0].state) == (True, "open")


def test_a_cut_tail_shows_against_a_head_kept_elsewhere(five: Path) -> None:
    heads = [file.head for file in verify(five).files]
    change(five, lambda lines: lines[:4])
    report = verify(five, known=heads)
    assert report.first_bad is not None
    assert (report.first_bad.seq, report.first_bad.line) == (4, 5)
    assert "reached seq 6 once" in report.first_bad.reason


def test_a_whole_chain_rewritten_shows_against_a_head_kept_elsewhere(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    log.append([make_decision()])
    head = log.head
    assert head is not None
    log.append([make_decision()])
    assert verify(log.folder, known=[head]).ok
    bad = verify(log.folder, known=[ChainHead(head.file, head.seq, "0" * 64)]).first_bad
    assert bad is not None
    assert (bad.seq, bad.line) == (1, 2)
    assert "rewritten" in bad.reason


def test_a_removed_file_shows_against_a_head_kept_elsewhere(five: Path, new_log: NewLog, make_decision: Make) -> None:
    heads = [file.head for file in verify(five).files]
    new_log().append([make_decision()])
    five.unlink()
    bad = verify(five.parent, known=heads).first_bad
    assert bad is not None
    assert "is gone" in bad.reason


def test_a_line_behind_the_checkpoint_is_found(five: Path) -> None:
    change(five, lambda lines: [*lines, lines[-1]])
    assert "behind the closing checkpoint" in first_bad(five).reason


def test_a_renamed_file_is_found(five: Path) -> None:
    new_name = five.with_name("audit-0190.jsonl")
    five.rename(new_name)
    assert "renamed or copied" in first_bad(new_name).reason


def test_an_empty_file_is_found(five: Path) -> None:
    five.write_bytes(b"")
    assert first_bad(five).reason == "the file is empty"


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"[]\n",
        b"null\n",
        b"\xff\xfe\n",
        b"[" * 50_000 + b"\n",
        b"9" * 5_000 + b"\n",
        b'{"a":NaN}\n',
        b"\0" * 4096,
    ],
)
def test_rubbish_is_a_report_not_a_crash(five: Path, line: bytes) -> None:
    change(five, lambda lines: [*lines[:2], line])
    assert (first_bad(five).line, first_bad(five).seq) == (3, 2)


@pytest.mark.parametrize("previous", [1, "x", {}, {"seq": "x", "hash": 1}, {"seq": None, "hash": None, "file": []}])
def test_a_forged_beginning_is_a_report_not_a_crash(five: Path, previous: object) -> None:
    change(five, lambda lines: [rehashed(lines[0], previous=previous), *lines[1:]])
    assert first_bad(five.parent).line == 1


@pytest.mark.parametrize("changes", [{"next": [1]}, {"records": 4}, {"next": "0190"}])
def test_a_forged_checkpoint_is_found(five: Path, changes: dict[str, object]) -> None:
    change(five, lambda lines: [*lines[:-1], rehashed(lines[-1], **changes)])
    assert first_bad(five.parent).file == five.name


@pytest.mark.parametrize("policy", [None, {}, {"revision": 3}, {"revision": "../../x"}])
def test_a_forged_policy_is_found(five: Path, policy: object) -> None:
    change(five, lambda lines: [*lines[:5], rehashed(lines[5], policy=policy)])
    assert first_bad(five.parent).seq == 5


# Rotated files


@pytest.fixture
def three_files(new_log: NewLog, make_decision: Make) -> list[Path]:
    with new_log(max_bytes=1) as log:
        for _ in range(3):
            log.append([make_decision()])
    return sorted(log.folder.glob("*.jsonl"))


def test_the_oldest_file_may_be_pruned(three_files: list[Path]) -> None:
    three_files[0].unlink()
    report = verify(three_files[0].parent)
    assert (report.ok, [file.pruned for file in report.files]) == (True, [True, False])


@pytest.mark.parametrize("gone", [1, 2])
def test_a_file_missing_later_is_found_at_the_checkpoint_that_names_it(three_files: list[Path], gone: int) -> None:
    three_files[gone].unlink()
    bad = first_bad(three_files[0].parent)
    assert bad.file == three_files[gone - 1].name
    assert "is gone" in bad.reason


def test_a_file_cut_before_its_checkpoint_is_found_by_the_next(three_files: list[Path]) -> None:
    change(three_files[0], lambda lines: lines[:-1])
    bad = first_bad(three_files[0].parent)
    assert (bad.file, bad.line, bad.seq) == (three_files[0].name, 3, 2)
    assert "its end was cut" in bad.reason


def test_one_bad_file_does_not_hide_another(three_files: list[Path]) -> None:
    for path in three_files[:2]:
        change(path, lambda lines: [lines[0], lines[1].replace(b"eiup", b"none"), *lines[2:]])
    assert [(bad.file, bad.seq) for bad in verify(three_files[0].parent).bad] == [
        (three_files[0].name, 1),
        (three_files[1].name, 4),
    ]


# Policies


def snapshot(five: Path) -> Path:
    return next((five.parent / "policies").glob("*.json"))


def test_a_swapped_policy_snapshot_is_found_at_the_first_record_that_names_it(five: Path) -> None:
    snapshot(five).write_bytes(b"{}")
    bad = first_bad(five.parent)
    assert (bad.line, bad.seq) == (2, 1)
    assert "the policy snapshot was changed" in bad.reason


def test_a_missing_policy_snapshot_is_found(five: Path) -> None:
    snapshot(five).unlink()
    assert "is not archived" in first_bad(five).reason


# Nothing to verify


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_place_without_a_log_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(AuditError, match=r"cannot read the audit log|there is no decision log"):
        verify(tmp_path / name)
