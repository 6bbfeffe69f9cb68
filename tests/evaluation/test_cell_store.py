"""Finished cells on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safeguard.errors import SafeguardError
from safeguard.evaluation.cell_store import CellStore, holds_cells

KEY = {"split": "dev", "count": 2}


def _file(folder: Path) -> Path:
    (path,) = (folder / "cells").iterdir()
    return path


def test_a_cell_comes_back_as_it_was(tmp_path: Path) -> None:
    CellStore(tmp_path).write("eiup-alone", "benign", KEY, {"found": np.array([True, False])})
    kept = CellStore(tmp_path).read("eiup-alone", "benign", KEY)
    assert kept is not None
    assert kept["found"].tolist() == [True, False]
    assert holds_cells(tmp_path)


def test_a_cell_of_other_settings_is_not_used(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    store.write("eiup", "benign", KEY, {"found": np.array([True])})
    assert store.read("eiup", "benign", {**KEY, "count": 3}) is None


@pytest.mark.parametrize("size", [0, 10, -1])
def test_a_torn_file_is_measured_again(tmp_path: Path, size: int) -> None:
    store = CellStore(tmp_path)
    store.write("eiup", "benign", KEY, {"found": np.zeros(1000)})
    path = _file(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    assert store.read("eiup", "benign", KEY) is None


def test_arms_named_with_signs_get_files_of_their_own(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    for place, arm in enumerate(("eiup:form=published@1.0", "eiup:form=gated@1.0", "../eiup")):
        store.write(arm, "benign", KEY, {"place": np.array(place)})
    assert len(list((tmp_path / "cells").iterdir())) == 3


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    store = CellStore(None)
    store.write("eiup", "benign", KEY, {"found": np.zeros(1)})
    assert store.read("eiup", "benign", KEY) is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(SafeguardError, match="--out"):
        CellStore(tmp_path / "out").write("eiup", "benign", KEY, {"found": np.zeros(1)})
