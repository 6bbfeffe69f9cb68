"""Deltas in thin factors: what is kept of them, and how."""

from __future__ import annotations

import pytest
import torch

from safeguard.sdk.delta_eraser import factorise, whole
from safeguard.sdk.seams import LinearEdit
from tests.support.worded_denoisers import delta_of


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_delta_of_that_rank_is_kept_whole() -> None:
    delta = numbers(5, 2) @ numbers(2, 7, seed=1)
    tensors, energy = factorise({"net.a": delta}, 2)
    assert {name: (tuple(one.shape), one.dtype) for name, one in tensors.items()} == {
        "net.a.down": ((2, 7), torch.float16),
        "net.a.up": ((5, 2), torch.float16),
    }
    assert energy == pytest.approx(1.0)
    torch.testing.assert_close(whole(tensors)["net.a"], delta, rtol=1e-2, atol=1e-2)


def test_of_a_larger_one_the_largest_directions_are() -> None:
    delta = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
    tensors, energy = factorise({"a": delta}, 1)
    assert energy == pytest.approx(9 / 14)
    torch.testing.assert_close(whole(tensors)["a"], torch.diag(torch.tensor([0.0, 3.0, 0.0])), rtol=1e-2, atol=1e-2)


def test_nothing_is_kept_of_nothing() -> None:
    tensors, energy = factorise({"a": torch.zeros(3, 4)}, 2)
    assert energy == 1.0
    assert not whole(tensors)["a"].any()


@pytest.mark.parametrize("up", [None, numbers(3, 2)], ids=["exact", "thin"])
def test_the_factors_of_an_edit_are_brought_over_once_for_each_dtype(up: torch.Tensor | None) -> None:
    edit = LinearEdit("net.a", ("blood",), numbers(2, 4), up)
    with torch.inference_mode():
        delta_of(edit, numbers(1, 4).half(), torch.ones(1, 1))
    first = edit._cast[torch.float16, torch.device("cpu")]
    made = delta_of(edit, numbers(1, 4).half(), torch.ones(1, 1))
    assert edit._cast[torch.float16, torch.device("cpu")] is first
    assert not first[0].is_inference()
    plain = numbers(1, 4).half() @ numbers(2, 4).half().T
    assert torch.equal(made, plain if up is None else plain @ up.half().T)
