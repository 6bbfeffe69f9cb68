"""What ``rece`` derives and edits away, against the paper's steps written out with whole matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.rece import RECE, derived
from safeguard_plugins.uce import UCE
from torch import Tensor

from safeguard.errors import CapabilityError
from tests.support.closed_form_checks import MODULES, close, edits_of, rows_of, solution, stacked, weight_of, words_of
from tests.support.worded_denoisers import TEXT, WordPipeline

A, B, L = 1.0, 0.1, 0.1  # the published scales
PUBLISHED = {"window": "aligned", "erase_scale": A, "preserve_scale": B, "lamb": L}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(weights: dict[str, Tensor], old: dict[str, Tensor], rows: Tensor, regulariser: float) -> Tensor:
    """c' of rows c [n, D]: (lambda I + sum W^T W)^-1 (sum W^T W_old) c."""
    whole = regulariser * torch.eye(TEXT, dtype=torch.float64) + sum(weight.T @ weight for weight in weights.values())
    crossed = sum(weight.T @ old[name] for name, weight in weights.items())
    return (torch.linalg.inv(whole) @ crossed @ rows.T).T


def published(phrase: str, epochs: int, regulariser: float = 0.1) -> dict[str, Tensor]:
    """The weights after UCE and so many epochs, step by step."""
    old = {module: WordPipeline().weight(module) for module in MODULES}
    rows, guide, kept = rows_of(phrase), rows_of(""), rows_of("")
    count = min(len(rows) - words_of(phrase), len(guide))
    start, towards = rows[words_of(phrase) :][:count], guide[:count]
    weights = {name: solution(one, start, towards @ one.T, kept, A, B, L) for name, one in old.items()}
    for _ in range(epochs):
        left = by_hand(weights, old, rows, regulariser)
        weights = {name: solution(one, left, guide @ one.T, kept, A, B, L) for name, one in weights.items()}
    return weights


@given(seed=st.integers(0, 10**6), many=st.integers(1, 9), regulariser=st.floats(1e-3, 10), pulled=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_derived_text_is_where_its_objective_is_least(seed: int, many: int, regulariser: float, pulled: bool) -> None:
    old = [drawn(seed + place, 6, TEXT) for place in range(3)]
    change, rows = drawn(seed + 3, TEXT, TEXT), drawn(seed + 4, many, TEXT)
    pull = rows if pulled else 0 * rows
    found = derived(sum(one.T @ one for one in old), change, rows, pull, regulariser).requires_grad_()
    parts = [((found @ (one @ change).T - rows @ one.T) ** 2).sum() for one in old]
    parts.append(regulariser * ((found - pull) ** 2).sum())
    (gradient,) = torch.autograd.grad(sum(parts), found, retain_graph=True)
    scale = sum(float(torch.autograd.grad(part, found, retain_graph=True)[0].norm()) for part in parts)
    assert gradient.norm() <= 1e-6 * scale


def test_of_layers_that_no_edit_changed_it_derives_the_concept_itself() -> None:
    gram = sum(drawn(place, 6, TEXT).T @ drawn(place, 6, TEXT) for place in range(3))
    rows = drawn(7, 4, TEXT)
    assert close(derived(gram, torch.eye(TEXT, dtype=torch.float64), rows, 0 * rows, 1e-9), rows)


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("module", MODULES)
def test_its_epochs_are_the_papers(module: str, epochs: int) -> None:
    edit = edits_of(RECE, "red blood", epochs=epochs, **PUBLISHED)[module]
    assert close(weight_of(edit, 0), published("red blood", epochs)[module])


@pytest.mark.parametrize("params", [{}, PUBLISHED], ids=["default", "published"])
def test_without_an_epoch_it_is_uce(params: dict[str, Any]) -> None:
    uce, rece = edits_of(UCE, "red blood", **params)["net.k"], edits_of(RECE, "red blood", epochs=0, **params)["net.k"]
    assert torch.equal(weight_of(rece, 0), weight_of(uce, 0))


def test_by_default_it_derives_from_the_last_word_alone() -> None:
    old = {module: WordPipeline().weight(module) for module in MODULES}
    row, guide = rows_of("red blood")[2:3], rows_of("")[:1]
    weights = {name: solution(one, row, guide @ one.T, row[:0], 1, 1, 0.5) for name, one in old.items()}
    left = by_hand(weights, old, row, 0.1)
    expected = solution(weights["net.k"], left, guide @ weights["net.k"].T, row[:0], 1, 1, 0.5)
    assert close(weight_of(edits_of(RECE, "red blood", epochs=1)["net.k"], 0), expected)


def test_an_endless_regulariser_leaves_the_edit_of_uce() -> None:
    plain, bounded = (edits_of(RECE, "blood", epochs=epochs, regulariser=1e12)["net.k"] for epochs in (0, 2))
    assert close(weight_of(bounded, 0), weight_of(plain, 0))


def test_an_epoch_leaves_less_of_the_concept() -> None:
    """No text of ordinary length gives the layers what the concept gave, once what did is edited away."""
    old = {module: WordPipeline().weight(module) for module in MODULES}
    left = []
    for epochs in (0, 1, 2):
        edits = edits_of(RECE, "blood", epochs=epochs, **PUBLISHED)
        now = {module: weight_of(edit, 0) for module, edit in edits.items()}
        best = by_hand(now, old, rows_of("blood"), 1.0)
        costs = [((best @ now[name].T - rows_of("blood") @ old[name].T) ** 2).sum() for name in MODULES]
        left.append(float(sum(costs) + (best**2).sum()))
    assert left == sorted(left)
    assert left[2] > left[0]


def test_a_concept_alone_is_as_in_a_policy_of_its_own() -> None:
    both = edits_of(RECE, "blood", "long sword")["net.v"]
    assert close(weight_of(both, 1), weight_of(edits_of(RECE, "long sword")["net.v"], 0))


def test_each_epoch_of_concepts_that_are_active_together_is_one_solution() -> None:
    """What is derived of each alone is edited away together."""
    phrases = ("blood", "long sword")
    old = WordPipeline().weight("net.k")
    guide, kept = rows_of(""), rows_of("")
    alone = [published(phrase, 0) for phrase in phrases]
    everything = {module: WordPipeline().weight(module) for module in MODULES}
    left = [by_hand(now, everything, rows_of(phrase), 0.1) for now, phrase in zip(alone, phrases, strict=True)]
    starts = [rows_of(phrase)[words_of(phrase) :] for phrase in phrases]
    first = solution(old, stacked(starts), stacked([guide[: len(one)] for one in starts]) @ old.T, kept, A, B, L)
    expected = solution(first, stacked(left), stacked([guide, guide]) @ first.T, kept, A, B, L)
    assert close(weight_of(edits_of(RECE, *phrases, epochs=1, **PUBLISHED)["net.k"], 0, 1), expected)


def test_kept_texts_move_less_than_without_keeping() -> None:
    row, old = rows_of("a house").T, WordPipeline().weight("net.k")
    free, held = (edits_of(RECE, "blood", preserve=texts, preserve_scale=10)["net.k"] for texts in ([], ["a house"]))
    assert ((weight_of(held, 0) - old) @ row).norm() < ((weight_of(free, 0) - old) @ row).norm()


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", -1), ("regulariser", 0), ("pull", "up"), ("guide", 3), ("lamb", 0), ("window", "x")]
)
def test_a_parameter_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(CapabilityError, match=rf"'c0': params\.{name} of 'rece'"):
        edits_of(RECE, "blood", **{name: value})
