"""What an edit keeps through a request: found again by image and concept, whatever is active next."""

from __future__ import annotations

import torch

from safeguard.plan.request_state import RequestCaches
from safeguard.sdk.edit_memory import Cells, EditMemory
from safeguard.sdk.seams import LinearEdit


def of(rows: int, columns: int) -> torch.Tensor:
    """A value of its own for every row and concept: [R, C, 2]."""
    return torch.arange(2.0 * rows * columns).reshape(rows, columns, 2)


def test_what_is_kept_comes_back() -> None:
    memory = EditMemory({}, [0, 1], [3, 4])
    memory.keep("w", of(2, 2))
    found = memory.recall("w")
    assert found is not None
    assert torch.equal(found, of(2, 2))


def test_other_rows_and_concepts_find_their_own() -> None:
    cells: Cells = {}
    EditMemory(cells, [0, 1, 2], [3, 4]).keep("w", of(3, 2))
    found = EditMemory(cells, [2, 0], [4]).recall("w")
    assert found is not None
    assert torch.equal(found, of(3, 2)[[2, 0]][:, [1]])


def test_nothing_is_known_until_every_row_and_concept_is() -> None:
    cells: Cells = {}
    EditMemory(cells, [0], [3]).keep("w", of(1, 1))
    memory = EditMemory(cells, [0, 1], [3])
    assert not memory.knows("w")
    assert memory.recall("w") is None


def test_what_is_kept_stays() -> None:
    cells: Cells = {}
    EditMemory(cells, [0], [3]).keep("w", of(1, 1))
    both = EditMemory(cells, [0, 1], [3])
    both.keep("w", 10 + of(2, 1))
    found = both.recall("w")
    assert found is not None
    assert torch.equal(found[0], of(1, 1)[0])
    assert torch.equal(found[1], 10 + of(2, 1)[1])


def test_rows_of_one_image_share_their_mean() -> None:
    memory = EditMemory({}, [0, 0, 1], [3])
    memory.keep("w", of(3, 1))
    found = memory.recall("w")
    assert found is not None
    assert torch.equal(found[0], of(3, 1)[:2].mean(0))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], of(3, 1)[2])


def test_nothing_is_kept_of_a_row_whose_image_is_not_known() -> None:
    memory = EditMemory({}, [None], [3])
    memory.keep("w", of(1, 1))
    assert memory.recall("w") is None


def test_what_is_shared_stays_whichever_rows_are_active() -> None:
    caches, edit = RequestCaches(), LinearEdit("layer", ("blood",), torch.zeros(1, 1))
    caches.memory(edit, [0], [0], [0]).shared["text"] = 1
    assert caches.memory(edit, [1], [0], [1]).shared == {"text": 1}
    assert caches.memory(edit, [1], [0], [1], "another denoiser").shared == {}
