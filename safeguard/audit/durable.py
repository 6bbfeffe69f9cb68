"""Bytes that are on the disk when a call returns, or not in the file at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from safeguard._io import BINARY, atomic_write, sync_folder, write_all
from safeguard.errors import AuditError


class DurableFile:
    """A file that one process appends to. After a failed write the file is cut back to its last good end; until that
    works, every further write is refused. Not for several threads at once: the caller holds a lock."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size  # bytes known to be durable
        self._descriptor = descriptor
        self._dirty = False  # whether there may be bytes behind `size`

    @classmethod
    def create(cls, path: Path, first: bytes) -> DurableFile:
        """A new file that holds ``first``. It takes its name only when it is whole, so a crash leaves no empty log."""
        draft = path.with_name(f".{path.name}.draft")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o600)
            try:
                try:
                    write_all(descriptor, first)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)  # Windows renames no file that is open
                os.rename(draft, path)
                sync_folder(path.parent)
                file = cls(path, os.open(path, os.O_WRONLY | os.O_APPEND | BINARY), 0)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise unwritable(path, error) from error
        file.size = len(first)
        return file

    def write(self, data: bytes) -> None:
        """Appends ``data`` and waits for the disk. Raises AuditError, and then nothing of ``data`` is in the file."""
        self._restore()
        self._check_untouched()
        self._dirty = True
        try:
            write_all(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError as error:
            self._try_restore()
            raise unwritable(self.path, error) from error
        except BaseException:  # an interrupt between two parts of one write
            self._try_restore()
            raise
        self._dirty = False
        self.size += len(data)

    def _restore(self) -> None:
        if not self._dirty:
            return
        try:
            os.ftruncate(self._descriptor, self.size)
            os.fsync(self._descriptor)
        except OSError as error:
            raise AuditError(
                f"{self.path}: a failed write could not be taken back ({error.strerror}), so nothing more is written: "
                "mend the disk and call again, or start a new process",
                path=str(self.path),
            ) from error
        self._dirty = False

    def _try_restore(self) -> None:
        with contextlib.suppress(AuditError):  # it stays dirty then: the next write tries again and says so
            self._restore()

    def _check_untouched(self) -> None:
        """Refuses to go on where the file was removed, replaced, cut or written to by someone else."""
        try:
            mine, there = os.fstat(self._descriptor), os.stat(self.path)
            untouched = os.path.samestat(mine, there) and there.st_size == self.size
        except OSError:
            untouched = False
        if not untouched:
            raise AuditError(
                f"{self.path}: the log was moved, removed or changed while it was open: put it back as it was, "
                "or start a new process, which starts a new file",
                path=str(self.path),
            )

    def close(self) -> None:
        """Gives the descriptor back; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Closes and removes the file: for one that must not have come to be."""
        self.close()
        self.path.unlink(missing_ok=True)


def put_file(path: Path, data: bytes, *, replace: bool) -> bool:
    """`atomic_write` of a file for its owner only. Raises AuditError where the disk refuses."""
    try:
        return atomic_write(path, data, replace=replace, mode=0o600)
    except OSError as error:
        raise unwritable(path, error) from error


def make_folder(folder: Path) -> None:
    """Makes ``folder`` (only its owner may enter) and proves that a file can be written in it. Raises AuditError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (FileExistsError, NotADirectoryError) as error:
        message = f"{folder}: a file stands where the audit folder should be: name another folder, or move the file"
        raise AuditError(message, path=str(folder)) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    with contextlib.suppress(OSError):  # the folder above may belong to someone else
        sync_folder(folder.parent)
    probe = folder / f".probe-{secrets.token_hex(8)}"
    put_file(probe, b"ok\n", replace=True)
    with contextlib.suppress(OSError):
        probe.unlink()


def unwritable(path: Path, error: OSError) -> AuditError:
    """The error for a place that cannot be written."""
    return AuditError(
        f"{path}: cannot write the audit log: {error.strerror or type(error).__name__}. "
        "Check that the folder may be written and that there is space",
        path=str(path),
    )
