"""Finished cells on disk: one file each, whole or not there, used again only where everything it depends on is the same."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from safeguard._io import write_whole
from safeguard.errors import SafeguardError

Arrays = dict[str, npt.NDArray[Any]]


class CellStore:
    """Cells under ``folder``/cells; None keeps nothing. Raises SafeguardError where the folder cannot be written."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder / "cells"

    def read(self, arm: str, cell: str, key: Mapping[str, Any]) -> Arrays | None:
        """What was kept for this cell, or None where nothing was, or it was made with another ``key``."""
        if self._folder is None:
            return None
        try:
            with np.load(_path(self._folder, arm, cell), allow_pickle=False) as stored:
                arrays = dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        same = str(arrays.pop("key", "")) == _text(key)
        return arrays if same else None

    def write(self, arm: str, cell: str, key: Mapping[str, Any], arrays: Arrays) -> None:
        if self._folder is None:
            return
        path = _path(self._folder, arm, cell)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{**arrays, "key": np.array(_text(key))})
        try:
            write_whole(path, buffer.getvalue())
        except OSError as fault:
            raise SafeguardError(f"{path}: cannot be written ({fault.strerror}); choose another --out") from fault


def _path(folder: Path, arm: str, cell: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9.@=-]+', '_', arm)}--{cell}.npz"


def holds_cells(folder: Path) -> bool:
    """Whether an earlier run left finished cells here."""
    return any((folder / "cells").glob("*.npz"))


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
