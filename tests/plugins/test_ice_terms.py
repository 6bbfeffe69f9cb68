"""What ``ice`` solves: its objective is least at its operator, and what two subspaces share stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.ice import ICE, Dissociation
from torch import Tensor

from safeguard.errors import CapabilityError
from tests.support.worded_denoisers import TEXT, WordPipeline, concepts_of, delta_of

SHARP = {"energy": 1e-6, "lamb": 1e-6}  # plain projectors
share = st.floats(0.001, 1)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weighted(rows: Tensor, energy: float) -> Tensor:
    """sum_i e_i / (e_i + energy) u_i u_i^T, written out by singular vectors."""
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    shares = sizes.square() / sizes.square().sum()
    projector: Tensor = directions.T @ torch.diag(shares / (shares + energy)) @ directions
    return projector


def operator(rows: Tensor, kept: Tensor, **scales: Any) -> Tensor:
    return torch.eye(TEXT, dtype=rows.dtype) - rows.T @ Dissociation(kept, **scales).answer(rows)


@given(
    seed=st.integers(0, 10**6), many=st.integers(1, 5), keep=st.integers(1, 12), energy=share, b=st.floats(0, 50), lamb=share
)
@settings(max_examples=30, deadline=None)
def test_the_gradient_of_the_objective_is_zero(seed: int, many: int, keep: int, energy: float, b: float, lamb: float) -> None:
    rows, kept, eye = drawn(seed, many, TEXT), drawn(seed + 1, keep, TEXT), torch.eye(TEXT, dtype=torch.float64)
    erased, held = weighted(rows, energy), weighted(kept, energy)
    shared = 2 * erased @ torch.linalg.pinv(erased + held, hermitian=True) @ held
    found = operator(rows, kept, energy=energy, overlap=b, lamb=lamb)
    gradient = found @ erased + b * (found - eye) @ shared + lamb * (found - eye)
    assert gradient.norm() <= 1e-6 * (1 + b) * erased.norm()


def test_with_nothing_shared_the_concept_is_gone_and_the_rest_stays() -> None:
    basis = torch.linalg.qr(drawn(0, TEXT, TEXT))[0]
    found = operator(basis[:2], basis[2:4], overlap=10.0, **SHARP)
    torch.testing.assert_close(found @ basis[:2].T, torch.zeros(TEXT, 2, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(found @ basis[2:].T, basis[2:].T, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("overlap", "left"), [(0.0, 0.0), (1.0, 0.5), (9.0, 0.9)])
def test_a_direction_that_kept_texts_have_as_well_stays_by_its_weight(overlap: float, left: float) -> None:
    basis = torch.linalg.qr(drawn(0, TEXT, TEXT))[0]
    found = operator(basis[:2], basis[1:3], overlap=overlap, **SHARP)
    torch.testing.assert_close(found @ basis[1], left * basis[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(found @ basis[0], torch.zeros(TEXT, dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_layer_is_changed_by_what_its_operator_takes() -> None:
    pipeline: Any = WordPipeline()
    edits: list[Any] = list(ICE().edits(concepts_of("blood"), {**ICE.params, "preserve": ("a dog",)}, pipeline))
    rows = pipeline.inputs(pipeline.text_layers[0], ["blood", "", "a dog"])
    kept = torch.cat(rows[1:])
    own = rows[0][1:2]  # the last word
    found = operator(own, kept, energy=0.01, overlap=10.0, lamb=0.01)
    weight = pipeline.weight(edits[0].module)
    given_rows = drawn(3, 1, 5, TEXT).float()
    expected = given_rows.double() @ (weight @ found - weight).T
    torch.testing.assert_close(delta_of(edits[0], given_rows, torch.ones(1, 1)).double(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "value"), [("energy", 0), ("overlap", -1), ("window", "first"), ("preserve", 3)])
def test_a_parameter_out_of_range_is_refused(name: str, value: Any) -> None:
    pipeline: Any = WordPipeline()
    with pytest.raises(CapabilityError, match=rf"'c0': params\.{name} of 'ice'"):
        ICE().edits(concepts_of("blood"), {**ICE.params, name: value}, pipeline)
