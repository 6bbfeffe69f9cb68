"""Reading what an audit log wrote: which files there are, and their lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from safeguard.audit.chain import MAX_LINE
from safeguard.audit.sinks import PREFIX, SUFFIX
from safeguard.errors import AuditError


def log_files(place: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The log files of a folder, oldest first (their ids are sorted by time), or the one file that was named.

    Raises AuditError where there is none.
    """
    path = Path(place)
    if os.path.isfile(path):  # not path.is_file(), which raises where the folder may not be entered
        return (path,)
    try:
        files = sorted(file for file in path.iterdir() if file.name.startswith(PREFIX) and file.name.endswith(SUFFIX))
    except OSError as error:
        raise AuditError(f"{path}: cannot read the audit log: {error.strerror}", path=str(path)) from error
    if not files:
        raise AuditError(f"{path}: there is no decision log ({PREFIX}*{SUFFIX}) in this folder", path=str(path))
    return tuple(files)


def folder_of(place: str | os.PathLike[str]) -> Path:
    """The audit folder that ``place`` (itself, or one of its files) belongs to."""
    path = Path(place)
    return path.parent if os.path.isfile(path) else path


def file_id(path: Path) -> str:
    """The id that a log file's name promises."""
    return path.name.removeprefix(PREFIX).removesuffix(SUFFIX)


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, one in memory at a time; an over-long one comes in pieces. Raises
    AuditError.
    """
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE + 1):
                yield line
    except OSError as error:
        raise AuditError(f"{path}: cannot read the audit log: {error.strerror}", path=str(path)) from error
