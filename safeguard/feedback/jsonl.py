"""An append-only file of JSON lines to which several programs write in turn, none of them over another's."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import filelock

from safeguard._io import BINARY, sync_folder, write_all
from safeguard.audit.canonical import Record, canonical, parse
from safeguard.audit.durable import put_file
from safeguard.errors import AuditError, FeedbackError

WAIT: Final = 10.0  # seconds for another program to finish its line


class JsonLines:
    """The lines of ``path``. Safe for threads and for several programs.

    A line counts when its end is on the disk. One without an end was broken off by a crash before anyone was told that it is
    kept: reading passes over it, and the next writer puts it aside, into ``<path>.torn``. Every method raises FeedbackError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()  # of the threads of this program
        self._file = filelock.FileLock(f"{path}.lock", timeout=WAIT, thread_local=False)
        self._read = 0  # bytes that were handed on
        self._count = 0  # lines among them

    @classmethod
    def create(cls, path: Path, first: Record) -> JsonLines:
        """The file, with one first line where it is new."""
        with writing(path):
            put_file(path, canonical(first) + b"\n", replace=False)
        return cls(path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, nobody else writes."""
        with self.lock:
            try:
                self._file.acquire()
            except filelock.Timeout as fault:
                message = f"{self.path}: another program has held this store for {WAIT:g} seconds; end it, or try again"
                raise FeedbackError(message, path=str(self.path)) from fault
            except OSError as fault:
                raise unwritable(self.path, fault) from fault
            try:
                yield
            finally:
                self._file.release()

    def read(self, take: Callable[[Record], None]) -> None:
        """Hand on the whole lines since the last call. A line that is none, or of which ``take`` raises ValueError, is damaged,
        and is met again by every later call.
        """
        with self.lock:
            *whole, _ = self._rest().split(b"\n")
            for line in whole:
                try:
                    take(parse(line))
                except ValueError as fault:
                    raise self._damaged(self._count + 1, str(fault)) from None
                self._read, self._count = self._read + len(line) + 1, self._count + 1

    def _rest(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(self._read)
                data = file.read()
        except OSError as fault:
            raise FeedbackError(f"{self.path}: cannot be read ({fault.strerror})", path=str(self.path)) from fault
        if size < self._read:
            message = f"{self.path}: this store was cut or replaced while it was open; put it back as it was, and start again"
            raise FeedbackError(message, path=str(self.path))
        return data

    def _damaged(self, line: int, why: str) -> FeedbackError:
        """The error for a line that cannot be read."""
        message = f"{self.path}:{line}: this line is damaged: {why}; put the file back from a copy, or take the line out"
        return FeedbackError(message, path=str(self.path), line=line)

    def append(self, records: Sequence[Record]) -> None:
        """Put whole lines on the disk. Only while `held`, and when all before them was read."""
        data = b"".join(canonical(record) + b"\n" for record in records)
        with writing(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | BINARY)
            try:
                end = self._mended(descriptor)
                try:
                    write_all(descriptor, data)
                    os.fsync(descriptor)
                except BaseException:
                    os.ftruncate(descriptor, end)
                    raise
            finally:
                os.close(descriptor)

    def _mended(self, descriptor: int) -> int:
        """Where the next line begins, after a broken-off one was put aside."""
        size = os.fstat(descriptor).st_size
        os.lseek(descriptor, self._read, os.SEEK_SET)  # Windows has no os.pread; O_APPEND writes at the end all the same
        with open(descriptor, "rb", closefd=False) as file:
            tail = file.read(size - self._read)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn:
            aside = os.open(f"{self.path}.torn", os.O_WRONLY | os.O_APPEND | os.O_CREAT | BINARY, 0o600)
            try:
                write_all(aside, torn + b"\n")
                os.fsync(aside)
            finally:
                os.close(aside)
            sync_folder(self.path.parent)
            os.ftruncate(descriptor, size - len(torn))
        return size - len(torn)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises FeedbackError where the disk refuses."""
    try:
        yield
    except OSError as fault:
        raise unwritable(path, fault) from fault
    except AuditError as fault:  # of what is shared with the audit log
        if isinstance(fault.__cause__, OSError):
            raise unwritable(path, fault.__cause__) from fault
        raise FeedbackError(str(fault), path=str(path)) from fault


def unwritable(path: Path, fault: OSError) -> FeedbackError:
    """The error for a place that cannot be written."""
    why = fault.strerror or str(fault) or type(fault).__name__
    return FeedbackError(
        f"{path}: cannot be written ({why}); nothing was kept. Check that the folder may be written and that there is space",
        path=str(path),
    )
