"""Whether a log is still what was written: every hash, every link, every policy snapshot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safeguard.audit.canonical import Record
from safeguard.audit.chain import CHECKPOINT_SCHEMA, FILE_SCHEMA, START, ChainHead, from_line
from safeguard.audit.decision import READABLE
from safeguard.audit.log_files import file_id, folder_of, lines, log_files
from safeguard.audit.policy_store import load_snapshot
from safeguard.errors import AuditError


@dataclass(frozen=True, slots=True)
class BadRecord:
    """The first place of a file that does not hold: ``line`` is 1-based, ``seq`` is what was expected there."""

    file: str
    line: int
    seq: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: seq {self.seq}: {self.reason}"


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file: ``records`` is how many decisions hold; ``state`` is ``closed``, ``rotated``, ``open`` or ``bad``.

    ``open`` means no closing checkpoint: its process still runs, was killed, or the tail was cut. ``head`` is the last
    record that holds. ``pruned`` says that the file goes on from one that is no longer there.
    """

    file: str
    records: int
    state: str
    head: ChainHead
    pruned: bool = False


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """``ok``, how many decision ``records`` hold, how many ``policies`` they name, and every ``bad`` place."""

    ok: bool
    records: int
    policies: int
    files: tuple[FileReport, ...]
    bad: tuple[BadRecord, ...]

    @property
    def first_bad(self) -> BadRecord | None:
        """The first bad record of the oldest file that has one, or None."""
        return self.bad[0] if self.bad else None


@dataclass(slots=True)
class _Scan:
    """What one file turned out to hold, up to its end or its first bad record."""

    path: Path
    head: ChainHead
    line: int = 0
    records: int = 0
    previous: ChainHead | None = None  # the end that it goes on from
    end: Mapping[str, Any] | None = None  # its checkpoint
    bad: BadRecord | None = None
    hashes: dict[int, str] = field(default_factory=dict)  # of the sequence numbers that the caller asked for
    policies: dict[str, tuple[int, int]] = field(default_factory=dict)  # revision -> line and seq that first name it

    def fault(self, reason: str, line: int | None = None, seq: int | None = None) -> BadRecord:
        line = self.line if line is None else line
        return BadRecord(self.path.name, line, self.head.seq + 1 if seq is None else seq, reason)


def verify(place: str | os.PathLike[str], *, known: Iterable[ChainHead] = ()) -> VerifyReport:
    """Checks a folder, or one of its files, reading each file once.

    ``known`` are heads of an earlier report that were kept elsewhere: with them a tail that was cut since, a chain that
    was rewritten and a file that was removed show too. Raises AuditError where there is nothing to read.
    """
    paths, known = log_files(place), tuple(known)
    scans = {file_id(path): _scan(path, {head.seq for head in known if head.file == file_id(path)}) for path in paths}
    bad = [scan.bad for scan in scans.values() if scan.bad]
    bad += _links(scans, whole_folder=os.path.isdir(place))
    bad += _policies(folder_of(place), scans.values())
    bad += _cuts(scans, known)
    bad.sort(key=lambda fault: (fault.file, fault.line))
    return VerifyReport(
        ok=not bad,
        records=sum(scan.records for scan in scans.values()),
        policies=len({revision for scan in scans.values() for revision in scan.policies}),
        files=tuple(_report(scan, scans) for scan in scans.values()),
        bad=tuple(bad),
    )


def _scan(path: Path, wanted: set[int]) -> _Scan:
    scan = _Scan(path, ChainHead(file_id(path)))
    for line in lines(path):
        scan.line += 1
        try:
            record = from_line(line)
            _step(scan, record)
        except ValueError as error:
            torn = "" if line.endswith(b"\n") else "torn tail, a crash or a cut within this line: "
            scan.bad = scan.fault(f"{torn}{error}")
            return scan
        if record["seq"] in wanted:
            scan.hashes[record["seq"]] = record["hash"]
    if scan.line == 0:
        scan.line, scan.bad = 1, scan.fault("the file is empty", line=1)
    return scan


def _step(scan: _Scan, record: Record) -> None:
    """Takes one record whose own hash holds. Raises ValueError where it cannot stand here."""
    schema, expected, prev = record.get("schema"), scan.head.seq + 1, scan.head.hash
    if scan.end is not None:
        raise ValueError("it stands behind the closing checkpoint")
    if scan.line == 1:
        expected, prev = _genesis(scan, record)
    elif schema == FILE_SCHEMA:
        raise ValueError("a second beginning within one file")
    if record.get("seq") != expected:
        actual = f"found seq {record.get('seq')}"
        raise ValueError(f"a record is missing or out of order, {actual}")
    if record.get("prev") != prev:
        raise ValueError("it is not chained to the record before: one of the two was replaced")
    if schema == CHECKPOINT_SCHEMA:
        if record.get("records") != scan.records:
            raise ValueError("the checkpoint counts other records than there are")
        if not isinstance(record.get("next"), (str, type(None))):
            raise ValueError("the checkpoint names no file to go on from")
        scan.end = record
    elif schema in READABLE:
        _decision(scan, record)
    scan.head = ChainHead(scan.head.file, expected, record["hash"])


def _genesis(scan: _Scan, record: Record) -> tuple[int, str]:
    """The sequence number and the hash before that a file's first record must have."""
    if record.get("schema") != FILE_SCHEMA:
        raise ValueError("the file does not begin with its genesis record: lines before it are missing")
    if record.get("file") != scan.head.file:
        raise ValueError(f"the file was renamed or copied: it was written as {record.get('file')}")
    match record.get("previous"):
        case None:
            return 0, START
        case {"file": str(file), "seq": int(seq), "hash": str(end)}:
            scan.previous = ChainHead(file, seq, end)
            return seq + 1, end
    raise ValueError("the genesis record does not say which file it goes on from")


def _decision(scan: _Scan, record: Record) -> None:
    policy = record.get("policy")
    revision = policy.get("revision") if isinstance(policy, dict) else None
    if not isinstance(revision, str):
        raise ValueError("the decision names no policy revision")
    scan.records += 1
    scan.policies.setdefault(revision, (scan.line, scan.head.seq + 1))


def _links(scans: Mapping[str, _Scan], *, whole_folder: bool) -> list[BadRecord]:
    """Rotation: the file that a checkpoint names must be there, and fit."""
    bad = []
    for scan in scans.values():
        following = scan.end.get("next") if scan.end else None
        if following and following not in scans and whole_folder:
            bad.append(scan.fault(f"the file that goes on from here, {following}, is gone", seq=scan.head.seq))
        before = scans.get(scan.previous.file) if scan.previous else None
        if scan.previous is None or before is None or before.bad:
            continue  # what came before was pruned, or is reported itself
        if before.head.hash != scan.previous.hash:
            reason = f"its end was cut, or its process was killed in rotation: {scan.path.name} goes on from another end"
            bad.append(before.fault(reason, line=before.line + 1))
    return bad


def _policies(folder: Path, scans: Iterable[_Scan]) -> list[BadRecord]:
    """Every revision that a record names is archived and has its digest; each fault is told where it first bites."""
    bad, seen = [], set()
    for scan in scans:
        for revision, (line, seq) in scan.policies.items():
            if revision in seen:
                continue
            seen.add(revision)
            try:
                load_snapshot(folder, revision)
            except AuditError as error:
                bad.append(scan.fault(str(error), line=line, seq=seq))
    return bad


def _cuts(scans: Mapping[str, _Scan], known: Iterable[ChainHead]) -> list[BadRecord]:
    """Heads that were seen before and must still be there."""
    bad = []
    for head in known:
        scan = scans.get(head.file)
        if scan is None:
            reason = f"the file {head.file} was there once, up to seq {head.seq}, and is gone"
            bad.append(BadRecord(head.file, 1, 0, reason))
        elif scan.bad is None and scan.head.seq < head.seq:
            bad.append(scan.fault(f"the tail was cut: the log reached seq {head.seq} once", line=scan.line + 1))
        elif scan.bad is None and scan.hashes.get(head.seq) != head.hash:
            line = scan.line - (scan.head.seq - head.seq)
            bad.append(scan.fault("the chain was rewritten: this record had another hash", line=line, seq=head.seq))
    return bad


def _report(scan: _Scan, scans: Mapping[str, _Scan]) -> FileReport:
    state = "open"
    if scan.bad:
        state = "bad"
    elif scan.end:
        state = "rotated" if scan.end.get("next") else "closed"
    pruned = scan.previous is not None and scan.previous.file not in scans
    return FileReport(scan.path.name, scan.records, state, scan.head, pruned)
