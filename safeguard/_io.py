"""The one atomic write. Nothing here imports torch: the audit log, policies and feedback write by it."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

BINARY: Final[int] = getattr(os, "O_BINARY", 0)  # without it `os.open` changes line ends on Windows


def write_whole(path: Path, data: bytes) -> None:
    """Write a file and its folder, whole or not at all: a process that is stopped leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)


def atomic_write(path: Path, data: bytes, *, replace: bool = True, mode: int = 0o666) -> bool:
    """Write a file in one step, durable: no reader and no crash sees a part of it, and it is on the disk when this returns.

    Safe between threads and processes: each writes a draft of its own in the same folder, and taking the name is one step.

    Args:
        path: The file. Its folder is there.
        data: All of its content.
        replace: Whether it takes the place of a file of that name.
        mode: Who may read and write it, before the process's umask.

    Returns:
        Whether it was written; False where a file is there already that may not be replaced.

    Raises:
        OSError: The disk refuses; then what was there before is still there, and no draft is left.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, mode)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if replace:
            os.replace(draft, path)
        else:
            os.link(draft, path)  # the one step that fails where the name is taken
        sync_folder(path.parent)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return True


def write_all(descriptor: int, data: bytes) -> None:
    """``os.write`` until everything is written: near a full disk it may take only a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a file's own fsync does not. Windows has no such call and needs none."""
    if os.name == "nt":  # a folder cannot be opened there; NTFS keeps names in its journal
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
