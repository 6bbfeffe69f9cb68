"""What concepts share is taken once: `factors`, against its own conditions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from safeguard.sdk.overlap import overlap_factors


def _changes(seed: int, concepts: int, width: int = 12) -> torch.Tensor:
    return torch.randn(concepts, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_changes_that_have_nothing_in_common_are_made_whole() -> None:
    assert torch.equal(overlap_factors(torch.diag(torch.tensor([4.0, 0.01, 9.0]))), torch.ones(3))


def test_of_equal_changes_one_is_made() -> None:
    assert overlap_factors(torch.full((5, 5), 3.0)).sum() == 1


def test_a_change_of_nothing_does_not_count() -> None:
    products = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert overlap_factors(products)[0] == 1


def test_changes_against_one_another_are_not_made_larger() -> None:
    assert torch.equal(overlap_factors(torch.tensor([[1.0, -0.9], [-0.9, 1.0]])), torch.ones(2))


@given(seed=st.integers(0, 10**6), concepts=st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_each_concept_is_taken_its_whole_way_or_at_its_own_size(seed: int, concepts: int) -> None:
    changes = _changes(seed, concepts)
    found = overlap_factors(changes @ changes.T)
    reached = changes @ (found @ changes)
    own = changes.square().sum(-1)
    assert ((reached >= own * 0.98) | (found == 1)).all()


@given(seed=st.integers(0, 10**6), concepts=st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_it_is_the_least_of_the_dual_problem(seed: int, concepts: int) -> None:
    changes = _changes(seed, concepts)
    gram = changes @ changes.T
    lower = torch.linalg.cholesky(gram)
    wanted = torch.linalg.solve_triangular(lower, gram.diagonal()[:, None], upper=False)[:, 0]
    best = torch.from_numpy(lsq_linear(lower.T.numpy(), wanted.numpy(), bounds=(0, 1)).x)

    def height(x: torch.Tensor) -> float:
        return float(x @ gram @ x / 2 - x @ gram.diagonal())

    assert height(overlap_factors(gram)) <= height(best) + 1e-3 * abs(height(best))
