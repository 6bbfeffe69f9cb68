"""Where decision records go: a folder of chained files on disk, or memory.

A record passes small processors: decision -> record -> mask -> chain -> sink.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import secrets
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from uuid_utils.compat import uuid7

from safeguard._log import get_logger
from safeguard.audit import policy_store
from safeguard.audit.canonical import Record, plain, rfc3339, utc_now
from safeguard.audit.chain import ChainHead, checkpoint, genesis, link, to_line
from safeguard.audit.decision import Decision, to_record
from safeguard.audit.durable import DurableFile, make_folder
from safeguard.audit.keys import check_key, load_or_make_key
from safeguard.audit.mask import Mask
from safeguard.audit.redact import redact as redact_by_rules
from safeguard.errors import AuditError

PREFIX, SUFFIX = "audit-", ".jsonl"

Clock = Callable[[], datetime]
Redact = Callable[[str], str]

_log = get_logger("safeguard.audit")


@runtime_checkable
class AuditSink(Protocol):
    """What a guard writes its decisions to. ``append`` returns when they are as safe as this sink can make them;
    whatever it raises keeps the images from being returned.
    """

    def append(self, decisions: Sequence[Decision], *, capture: str = "hmac") -> tuple[Record, ...]: ...

    def store_policy(self, revision: str, canonical: bytes) -> None: ...

    def close(self) -> None: ...


class _Recorder:
    """What every sink does before it writes: labels, time, mask."""

    def __init__(self, service: str, instance: str | None, key: bytes, redact: Redact, clock: Clock) -> None:
        self._service, self._instance = plain(service), plain(instance)
        self._key, self._redact, self._clock = key, redact, clock

    def records(self, decisions: Sequence[Decision], capture: str) -> list[Record]:
        mask, now, labels = Mask(capture, self._key, self._redact), self._clock(), self.labels()
        return [mask(to_record(decision, labels, now)) for decision in decisions]

    def labels(self) -> dict[str, str]:
        instance = self._instance or f"{socket.gethostname()}:{os.getpid()}"
        return {"service": self._service, "instance": instance, "safeguard": _version()}

    def time(self) -> str:
        return rfc3339(self._clock())


class AuditLog:
    """A folder of decision logs: one file for each process, each a hash chain. Stable.

    A record is on disk before ``append`` returns. Thread-safe; after a fork the child starts a file of its own.

    Args:
        folder: Is made if it is missing.
        service: The name of your service, for the records' labels.
        instance: The name of this process there; by default host and process.
        key: For the HMACs of prompts; by default the one in ``folder/hmac.key``.
        max_bytes: The size from which on the next records go to a new file, chained to the last.
        redact: Makes the text of capture mode ``redacted``.
        clock: Gives aware datetimes.

    Raises:
        AuditError: By every method.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        service: str = "safeguard",
        instance: str | None = None,
        key: bytes | None = None,
        max_bytes: int = 64 * 2**20,
        redact: Redact = redact_by_rules,
        clock: Clock = utc_now,
    ) -> None:
        self.folder = Path(folder)
        make_folder(self.folder)
        secret = load_or_make_key(self.folder) if key is None else check_key(key)
        self._recorder = _Recorder(service, instance, secret, redact, clock)
        self._max_bytes = max_bytes
        self._stored: set[str] = set()
        self._closed = False
        self._start_afresh()
        _open_logs.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._file: DurableFile | None = None
        self._head = ChainHead("")
        self._decisions = 0  # in the open file

    @property
    def head(self) -> ChainHead | None:
        """The last record that is on disk, or None before the first. Sent to another machine, it shows a cut tail."""
        return self._head if self._file is not None else None

    def append(self, decisions: Sequence[Decision], *, capture: str = "hmac") -> tuple[Record, ...]:
        """Makes the decisions of one call durable with one write and one fsync, all or none; gives the records.

        Raises AuditError where the disk refuses, and where a decision names a policy that was not archived.
        """
        if os.getpid() != self._process:  # forked in a way that no hook saw
            self._start_afresh()
        with self._lock:
            self._check(decisions)
            records = self._recorder.records(decisions, capture)
            if not records:
                return ()
            file = self._ready_file()
            head, linked = link(self._head, records)
            file.write(b"".join(map(to_line, linked)))
            self._head, self._decisions = head, self._decisions + len(linked)
        return linked

    def store_policy(self, revision: str, canonical: bytes) -> None:
        """Archives a policy's canonical snapshot under its revision; to be called before a decision names it."""
        policy_store.store(self.folder, revision, canonical)
        self._stored.add(revision)

    def close(self) -> None:
        """Ends the file with a checkpoint. A second call does nothing. What was appended is safe even without it."""
        with self._lock:
            self._closed = True
            if self._file is None or self._process != os.getpid():
                return
            try:
                self._head, line = self._checkpoint(following=None)
                self._file.write(line)
            except AuditError as error:
                _log.warning("checkpoint_not_written", folder=str(self.folder), reason=str(error))
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check(self, decisions: Sequence[Decision]) -> None:
        if self._closed:
            raise AuditError(f"{self.folder}: the audit log is closed: make a new AuditLog", path=str(self.folder))
        for revision in {decision.policy_revision for decision in decisions} - self._stored:
            policy_store.load_snapshot(self.folder, revision)  # perhaps another process archived it
            self._stored.add(revision)

    def _ready_file(self) -> DurableFile:
        if self._file is None:
            file_id = str(uuid7())
            self._file, self._head = self._create(file_id, ChainHead(file_id), previous=None)
        elif self._file.size >= self._max_bytes:
            self._rotate(self._file)
        return self._file

    def _create(self, file_id: str, head: ChainHead, previous: Record | None) -> tuple[DurableFile, ChainHead]:
        first = genesis(file_id, self._recorder.time(), self._recorder.labels(), previous)
        head, (line,) = link(ChainHead(file_id, head.seq, head.hash), [first])
        return DurableFile.create(self.folder / f"{PREFIX}{file_id}{SUFFIX}", to_line(line)), head

    def _rotate(self, old: DurableFile) -> None:
        """The new file first, then the old one's checkpoint that names it: no crash leaves a name without a file."""
        file_id = str(uuid7())
        last, line = self._checkpoint(following=file_id)
        previous = {"file": last.file, "records": self._decisions, "seq": last.seq, "hash": last.hash}
        file, head = self._create(file_id, last, previous)
        try:
            old.write(line)
        except BaseException:
            file.discard()
            raise
        old.close()
        self._file, self._head, self._decisions = file, head, 0
        _log.info("log_file_rotated", file=file.path.name, previous_file=old.path.name)

    def _checkpoint(self, following: str | None) -> tuple[ChainHead, bytes]:
        end = checkpoint(self._head.file, self._recorder.time(), self._decisions, following)
        head, (record,) = link(self._head, [end])
        return head, to_line(record)

    def _after_fork(self) -> None:
        """In the child: another thread may have held the lock, and the file belongs to the parent."""
        if self._file is not None:
            self._file.close()
        self._start_afresh()


class MemorySink:
    """Keeps ``records`` (one chain, without files) and ``policies``; for tests, and for whoever ships records
    elsewhere.
    """

    def __init__(
        self,
        *,
        service: str = "safeguard",
        instance: str | None = None,
        key: bytes | None = None,
        redact: Redact = redact_by_rules,
        clock: Clock = utc_now,
    ) -> None:
        secret = secrets.token_bytes(32) if key is None else check_key(key)
        self._recorder = _Recorder(service, instance, secret, redact, clock)
        self._lock = threading.Lock()
        self._head = ChainHead(str(uuid7()))
        self.records: list[Record] = []
        self.policies: dict[str, bytes] = {}

    def append(self, decisions: Sequence[Decision], *, capture: str = "hmac") -> tuple[Record, ...]:
        """As ``AuditLog.append``, but kept in memory only."""
        with self._lock:
            self._head, linked = link(self._head, self._recorder.records(decisions, capture))
            self.records.extend(linked)
        return linked

    def store_policy(self, revision: str, canonical: bytes) -> None:
        """Keeps a snapshot in ``policies``. Raises AuditError where the digest is not its own."""
        policy_store.check_digest(revision, canonical)
        self.policies[revision] = canonical

    def close(self) -> None:
        """Does nothing: there is nothing to close."""


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("safeguard-diffusion")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


_open_logs: weakref.WeakSet[AuditLog] = weakref.WeakSet()


def _renew_all() -> None:
    for log in list(_open_logs):
        log._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
